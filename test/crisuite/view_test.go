package crisuite

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// look prints what a container can see of its surroundings, but for what is
// different from container to container. The files that Caisson has on a file
// system of their own, so that containers cannot fill the node's, are only named;
// so is /dev/shm, whose flags with the reference depend on runc's version, and
// whose owner Caisson's user namespaces know.
const look = `
awk '{
	for (i = 7; $i != "-"; i++);
	print $5, $5 ~ "^/(etc/|dev/shm)" ? "" : $6 " " $(i + 1) " " $(i + 3)
}' /proc/self/mountinfo | sed -E 's/(lowerdir|upperdir|workdir)=[^, ]*/\1=-/g' | sort
env | sort
ls -ln /dev /dev/shm /etc /run | grep -vE ' (shm|mqueue)$' | awk '{ print $1, $3, $4, $5, $6, $NF }'
stat -f -c '%n %T' /dev /dev/shm /proc /sys
grep -E '^(Umask|Uid|Gid|Groups|Sig|Shd|Cap|NoNewPrivs|Seccomp|Spec)' /proc/self/status | grep -v SigQ
cat /proc/self/oom_score_adj /proc/self/cgroup | sed -E 's/[0-9a-f]{64}/ID/; s/pod[0-9]+/POD/'
for f in net/core/somaxconn net/ipv4/ip_forward net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range \
	net/ipv6/conf/all/forwarding kernel/shmmax kernel/sem kernel/msgmax fs/mqueue/msg_max; do
	echo $f $(cat /proc/sys/$f)
done
umask; ulimit -a; pwd; cat /etc/resolv.conf`

// lookAtNetwork is the same for a network of the pod's own.
const lookAtNetwork = `
ip -o link | sed -E 's/@if[0-9]+//; s/link.ether .*//; s/^[0-9]+: //'
ip route | sed -E 's/10\.[0-9.\/]+/ADDRESS/g'`

// TestView: a container of Caisson sees what one of the reference sees.
func TestView(t *testing.T) {
	for pods, c := range map[string]struct {
		pod       func(*runtime.PodSandboxConfig)
		container func(*runtime.ContainerConfig)
	}{
		"plain":      {namespaces(func(*runtime.NamespaceOption) {}), mounts()},
		"privileged": {privilegedPod, security(func(c *runtime.LinuxContainerSecurityContext) { c.Privileged = true })},
		"node": {namespaces(func(o *runtime.NamespaceOption) {
			o.Network, o.Ipc = runtime.NamespaceMode_NODE, runtime.NamespaceMode_NODE
		}), mounts()},
		"user namespace": {userNamespace(mapping(0, firstUser, userCount), mapping(0, firstUser, userCount)), mounts()},
		"shared PIDs":    {namespaces(func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_POD }), mounts()},
	} {
		t.Run(pods, func(t *testing.T) {
			t.Parallel()
			if running == nil {
				t.Skip("needs root")
			}
			views := map[string]string{}
			for _, name := range []string{reference, embedded, stock} {
				s, script := use(t, name), look
				if pods == "user namespace" {
					s.needUserNamespaces()
				}
				p := s.pod(c.pod, func(cfg *runtime.PodSandboxConfig) {
					if cfg.Hostname != "" {
						cfg.Hostname = "same"
					}
				})
				if p.cfg.Hostname != "" {
					script += lookAtNetwork
				}
				views[name] = strings.NewReplacer(s.Host.Token, "TOKEN", ignored(s.t), "SigIgn:\t0000000000000000").
					Replace(s.Shell(p.sleeper("c", c.container), script))
			}
			for _, name := range []string{embedded, stock} {
				if diff := cmp.Diff(strings.Split(views[reference], "\n"), strings.Split(views[name], "\n")); diff != "" {
					t.Errorf("%s (-reference +%[1]s):\n%s", name, diff)
				}
			}
		})
	}
}

// ignored are the signals that this process ignores, as a container's status would
// say it. The reference hands them on to its containers, which Caisson does not;
// GNU make lets its programs ignore two.
func ignored(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`SigIgn:\t\w+`).FindString(string(status))
}
