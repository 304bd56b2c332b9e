package cli

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"caisson/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "Print configuration for the programs around Caisson",
		"  caisson config containerd >/etc/containerd/conf.d/caisson.toml\n  caisson config kubernetes | kubectl apply -f -",
		a.configContainerdCommand(), a.configKubernetesCommand())
}

// containerdConfig makes a stock containerd use Caisson. There is no options
// table: with one, CRI and the task service disagree about its type for pods
// with a user namespace.
const containerdConfig = `# Makes containerd 2.x run pods of the handler "caisson" in Caisson's sandboxes.
# As a file of its own it needs the first line; in containerd's config.toml,
# which has such a line already, leave it out. Then restart containerd. The
# daemon runs beside it: caissond --engine none --containerd-address SOCKET
version = 3

[proxy_plugins.caisson]
type = "sandbox"
address = %[1]s

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.caisson]
runtime_type = "` + runtimeName + `"
sandboxer = "` + sandboxer + `"
disable_pause_image_pull = true
`

func (a *app) configContainerdCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Print what a stock containerd needs in its configuration",
		Long: `Print the configuration that makes a stock containerd 2.x use caissond as a
sandboxer: the proxy plugin, and the runtime handler of CRI.`,
		Example: "  caisson config containerd >/etc/containerd/conf.d/caisson.toml",
		Args:    atMost(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if !filepath.IsAbs(state) {
				return advise(errdefs.ErrInvalidArgument, "state directory %q: containerd needs an absolute path, one that starts with /", state)
			}
			return writeContainerdConfig(a.sys.Stdout, state)
		},
	}
	cmd.Flags().StringVar(&state, "state", config.Default().State, "state directory of caissond, where its sockets are")
	return cmd
}

func writeContainerdConfig(w io.Writer, state string) error {
	address, err := tomlString(filepath.Join(state, "sandboxer.sock"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, containerdConfig, address)
	return err
}

// tomlString quotes a path as TOML does; only printable ones can be quoted so
// that TOML and Go agree.
func tomlString(path string) (string, error) {
	for _, r := range path {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return "", advise(errdefs.ErrInvalidArgument, "path %q holds characters that a configuration file cannot", path)
		}
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(path) + `"`, nil
}

// kubernetesConfig is a RuntimeClass and a pod that uses it.
//
// The overhead is what a pod costs beside its containers, as BenchmarkOverhead of
// test/integration measures it, rounded up: docs/kubernetes.md has the numbers.
// Processor time is spent only when something starts, ends or is asked for.
const kubernetesConfig = `# Pods with "runtimeClassName: caisson" run in Caisson. The handler is the name
# of the runtime in containerd's configuration (caisson config containerd), or
# the default one of caissond's own engine.
#
# overhead is what the scheduler adds for the sandbox itself. Measured with 100
# pods: two processes of 28 KiB together, 150 to 200 KiB in the daemon, and 200 to
# 510 KiB in the kernel, the most for a network of the pod's own; rounded up. All
# of it sleeps while nothing starts or ends, so no processor time is reserved.
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: caisson
handler: caisson
overhead:
  podFixed:
    memory: "1Mi"
# If only some nodes have Caisson, label them and uncomment this:
# scheduling:
#   nodeSelector:
#     caisson: "true"
---
apiVersion: v1
kind: Pod
metadata:
  name: caisson-example
spec:
  runtimeClassName: caisson
  containers:
  - name: web
    image: docker.io/library/busybox:latest
    command: ["sh", "-c", "mkdir /www && hostname >/www/index.html && exec httpd -f -p 8080 -h /www"]
    ports:
    - containerPort: 8080
    resources:
      limits:
        memory: 32Mi
        cpu: 100m
`

func (a *app) configKubernetesCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "kubernetes",
		Short:   "Print a RuntimeClass and an example pod",
		Long:    "Print a RuntimeClass with the overhead of a pod, and an example pod, for kubectl apply.",
		Example: "  caisson config kubernetes | kubectl apply -f -",
		Args:    atMost(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.sys.Stdout, kubernetesConfig)
			return err
		},
	}
}
