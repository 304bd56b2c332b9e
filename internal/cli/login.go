package cli

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/console"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const defaultRegistry = "docker.io"

func (a *app) loginCommand() *cobra.Command {
	var username string
	var fromStdin bool
	var registry registryFlags
	cmd := &cobra.Command{
		Use:   "login [REGISTRY]",
		Short: "Log in to a registry",
		Long: "Ask a registry, " + defaultRegistry + " if none is named, whether it takes a name and a password, and keep them in\n" +
			"Docker's configuration: with the credential helper that it names, or else readable in config.json.",
		Example: "  caisson login registry.example\n  caisson login -u me --password-stdin registry.example <token",
		Args:    atMost(1, "a registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			reg, err := loginRegistry(args)
			if err != nil {
				return err
			}
			cred, err := a.askCredentials(cmd.Context(), username, fromStdin)
			if err != nil {
				return err
			}
			return a.login(cmd.Context(), reg, cred, registry)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&username, "username", "u", "", "name of the user")
	flags.BoolVar(&fromStdin, "password-stdin", false, "read the password, or token, from standard input")
	registry.add(a, cmd)
	return cmd
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "logout [REGISTRY]",
		Short:   "Forget the credentials for a registry",
		Example: "  caisson logout registry.example",
		Args:    atMost(1, "a registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			reg, err := loginRegistry(args)
			if err != nil {
				return err
			}
			store, err := a.credentialStore()
			if err != nil {
				return err
			}
			return credentials.Logout(cmd.Context(), store, reg.Reference.Registry)
		},
	}
}

func loginRegistry(args []string) (*remote.Registry, error) {
	name := defaultRegistry
	if len(args) > 0 {
		name = strings.TrimSuffix(strings.TrimPrefix(args[0], "https://"), "/") // as Docker takes it
	}
	reg, err := remote.NewRegistry(name)
	if err != nil {
		return nil, advise(errdefs.ErrInvalidArgument, "%q is no registry: write its host and port, such as registry.example or 127.0.0.1:5000", name)
	}
	return reg, nil
}

// login asks the registry, and then keeps the credentials. On loopback, HTTP will do
// where there is no TLS.
func (a *app) login(ctx context.Context, reg *remote.Registry, cred auth.Credential, f registryFlags) error {
	store, err := a.credentialStore()
	if err != nil {
		return err
	}
	name := reg.Reference.Registry
	client, err := f.client(ctx, name, reg.Reference.Host())
	if err != nil {
		return err
	}
	reg.PlainHTTP, reg.Client = f.plainHTTP, &auth.Client{Client: client}
	err = credentials.Login(ctx, store, reg, cred)
	if errors.Is(err, http.ErrSchemeMismatch) && docker.IsLocalhost(name) {
		reg.PlainHTTP = true
		err = credentials.Login(ctx, store, reg, cred)
	}
	refused, unknown := (*errcode.ErrorResponse)(nil), (*tls.CertificateVerificationError)(nil)
	switch {
	case err == nil:
		_, err = fmt.Fprintf(a.sys.Stdout, "logged in to %s\n", name)
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, http.ErrSchemeMismatch):
		return advise(errdefs.ErrFailedPrecondition, "%s has no TLS: if that is meant, add --plain-http", name)
	case errors.As(err, &unknown):
		return advise(err, "no login to %s: %v; %s", name, unknown, f.trust(name))
	case errors.As(err, &refused) && refused.StatusCode == http.StatusUnauthorized:
		return advise(errdefs.ErrUnauthenticated, "%s does not take this name and password: check both, some registries want a token as password", name)
	}
	return advise(err, "no login to %s: %v; check the name and the network", name, err)
}

// askCredentials takes the password from standard input, or asks for what is missing.
func (a *app) askCredentials(ctx context.Context, username string, fromStdin bool) (auth.Credential, error) {
	none := auth.EmptyCredential
	if fromStdin {
		if username == "" {
			return none, advise(errdefs.ErrInvalidArgument, "--password-stdin says nothing of the user: add --username")
		}
		text, err := io.ReadAll(io.LimitReader(inStream{ctx, a.sys.Stdin}, maxPassword))
		if err != nil {
			return none, fmt.Errorf("password: %w", err)
		}
		return password(username, strings.TrimRight(string(text), "\r\n"))
	}
	if !isTerminal(a.sys.Stdin) {
		return none, advise(errdefs.ErrInvalidArgument, "standard input is no terminal, so nobody can be asked: add --username and --password-stdin")
	}
	if username == "" {
		fmt.Fprint(a.sys.Stderr, "Username: ")
		line, err := a.answer(ctx)
		if err != nil {
			return none, fmt.Errorf("username: %w", err)
		}
		username = strings.TrimSpace(line)
	}
	con, err := console.ConsoleFromFile(a.sys.Stdin)
	if err == nil {
		err = con.DisableEcho()
	}
	if err != nil {
		return none, fmt.Errorf("terminal: %w", err)
	}
	defer con.Reset() //nolint:errcheck // a terminal that is gone needs no reset
	fmt.Fprint(a.sys.Stderr, "Password: ")
	line, err := a.answer(ctx)
	fmt.Fprintln(a.sys.Stderr)
	if err != nil {
		return none, fmt.Errorf("password: %w", err)
	}
	return password(username, strings.TrimRight(line, "\r\n"))
}

// answer is the line that somebody types.
func (a *app) answer(ctx context.Context) (string, error) {
	line, err := bufio.NewReader(inStream{ctx, a.sys.Stdin}).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = nil // no answer
	}
	return line, err
}

// maxPassword is more than any token is long.
const maxPassword = 64 << 10

func password(username, text string) (auth.Credential, error) {
	if username == "" || text == "" {
		return auth.EmptyCredential, advise(errdefs.ErrInvalidArgument, "the name or the password is empty: say both")
	}
	return auth.Credential{Username: username, Password: text}, nil
}
