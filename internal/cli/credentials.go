package cli

import (
	"context"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// dockerConfig is the file that Docker keeps credentials in, or names helpers in.
func (a *app) dockerConfig() (string, error) {
	if dir := a.sys.Env("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json"), nil
	}
	if home := a.sys.Env("HOME"); home != "" {
		return filepath.Join(home, ".docker", "config.json"), nil
	}
	return "", advise(errdefs.ErrFailedPrecondition, "neither DOCKER_CONFIG nor HOME is set, so nobody knows where credentials are: set DOCKER_CONFIG to a directory")
}

func (a *app) credentialStore() (credentials.Store, error) {
	path, err := a.dockerConfig()
	if err != nil {
		return nil, err
	}
	store, err := credentials.NewStore(path, credentials.StoreOptions{AllowPlaintextPut: true})
	if err != nil {
		return nil, advise(errdefs.ErrInvalidArgument, "the credentials in %s cannot be read: %v; mend the file, or name another directory with DOCKER_CONFIG", path, err)
	}
	return store, nil
}

// credentialHelper answers the daemon, which asks for the credentials of a host when a
// registry wants some. An error must not be its answer: containerd's client logs it and
// leaves the daemon waiting. So it goes to fail, which ends the transfer.
type credentialHelper struct {
	find func(ctx context.Context, server string) (username, password string, err error)
	fail func(error)
}

// credentials are those of the user's Docker configuration; none without one.
func (a *app) credentials(fail func(error)) (credentialHelper, error) {
	h := credentialHelper{fail: fail}
	if a.sys.Env("DOCKER_CONFIG") == "" && a.sys.Env("HOME") == "" {
		h.find = func(context.Context, string) (string, string, error) { return "", "", nil }
		return h, nil
	}
	store, err := a.credentialStore()
	if err != nil {
		return h, err
	}
	h.find = func(ctx context.Context, server string) (string, string, error) {
		c, err := store.Get(ctx, server)
		if err != nil {
			return "", "", advise(errdefs.ErrUnauthenticated, "the credentials for %s cannot be had: %v; see the helpers in Docker's configuration, or log in again with `caisson login`", server, err)
		}
		if c.RefreshToken != "" {
			return "", c.RefreshToken, nil // as containerd tells a token from a password
		}
		return c.Username, c.Password, nil
	}
	return h, nil
}

func (h credentialHelper) GetCredentials(ctx context.Context, _, host string) (registry.Credentials, error) {
	username, secret, err := h.find(ctx, credentials.ServerAddressFromHostname(host))
	if err != nil {
		h.fail(err)
	}
	return registry.Credentials{Host: host, Username: username, Secret: secret}, nil
}

var _ registry.CredentialHelper = credentialHelper{}
