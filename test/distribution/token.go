package distribution

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Tokens is a server that gives User, who says Password, tokens for a registry.
type Tokens struct {
	server *httptest.Server
	key    *ecdsa.PrivateKey
	cert   []byte // DER
	path   string // of the certificate, which the registry trusts
	given  atomic.Int64
}

const service, issuer = "registry of the test", "tokens of the test"

// ServeTokens starts it. It writes its certificate into dir.
func ServeTokens(dir string) (*Tokens, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: issuer},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	t := &Tokens{key: key, cert: cert, path: filepath.Join(dir, "tokens.pem")}
	if err := os.WriteFile(t.path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
		return nil, err
	}
	t.server = httptest.NewServer(t)
	return t, nil
}

// Close ends the server.
func (t *Tokens) Close() { t.server.Close() }

// Given is how many tokens the server has given.
func (t *Tokens) Given() int64 { return t.given.Load() }

// Auth is the authentication by its tokens.
func (t *Tokens) Auth() string {
	return fmt.Sprintf("  token: {realm: %q, service: %q, issuer: %q, rootcertbundle: %q}\n", t.server.URL+"/token", service, issuer, t.path)
}

// access is what a token allows.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// ServeHTTP answers both kinds of request: GET with Basic authentication, and OAuth's POST.
func (t *Tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		name, password = r.FormValue("username"), r.FormValue("password")
	}
	if name != User || password != Password {
		http.Error(w, "wrong name or password", http.StatusUnauthorized)
		return
	}
	var all []access
	_ = r.ParseForm() // what it cannot read is no scope
	for _, scopes := range r.Form["scope"] {
		for _, scope := range strings.Fields(scopes) {
			parts := strings.SplitN(scope, ":", 3)
			if len(parts) == 3 {
				all = append(all, access{parts[0], parts[1], strings.Split(parts[2], ",")})
			}
		}
	}
	token, err := t.sign(all)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	t.given.Add(1)
	_ = json.NewEncoder(w).Encode(map[string]string{"token": token, "access_token": token}) // the client went away
}

// sign makes a JWT as the registry wants it: ES256, with the certificate in its header.
func (t *Tokens) sign(all []access) (string, error) {
	now := time.Now()
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(t.cert)}})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": issuer, "aud": service, "sub": User, "jti": rand.Text(), "access": all,
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode(header) + "." + encode(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, t.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + encode(signature), nil
}
