package manifest

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// pod is a Pod with one container; spec and container are more lines of each.
func pod(spec, container string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: a}, annotations: {note: x}}\nspec:\n" +
		indent(spec, 2) + "  containers:\n  - name: c\n    image: demo\n" + indent(container, 4)
}

func indent(text string, by int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.Repeat(" ", by) + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

const settings = `---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red, index.html: hello}
binaryData: {logo: aGk=}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: s3cret}
`

func mustRead(t *testing.T, text string) (Pod, []string) {
	t.Helper()
	set, err := Read("pod.yaml", []byte(text), Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return set.Pods[0], set.Warnings
}

func TestRead(t *testing.T) {
	got, warnings := mustRead(t, `
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: site}
spec:
  hostname: box
  shareProcessNamespace: true
  hostAliases: [{ip: 10.0.0.1, hostnames: [db, store]}]
  dnsPolicy: None
  dnsConfig: {nameservers: [10.0.0.53], options: [{name: ndots, value: "2"}, {name: rotate}]}
  securityContext:
    runAsUser: 1000
    runAsNonRoot: true
    fsGroup: 2000
    supplementalGroups: [7]
    sysctls: [{name: net/ipv4/ip_forward, value: "1"}]
  volumes:
  - {name: work, emptyDir: {}}
  - {name: fast, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: logs, hostPath: {path: /var/log/, type: Directory}}
  - {name: site, configMap: {name: settings, items: [{key: index.html, path: www/index.html, mode: 0400}]}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0600}}
  initContainers:
  - {name: setup, image: demo, command: [prepare]}
  - {name: proxy, image: demo, restartPolicy: Always}
  containers:
  - name: c
    image: demo:1
    imagePullPolicy: Never
    command: [serve, $(COLOR)]
    args: ["--at", $(IP), $$(IP), $(NOBODY), "100$"]
    workingDir: /srv
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: BOTH, value: $(COLOR)-$(APP)}
    envFrom: [{prefix: S_, configMapRef: {name: settings}}]
    ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 53, protocol: UDP}]
    resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: "2"}}
    volumeMounts:
    - {name: work, mountPath: /work/, subPath: a/b}
    - {name: logs, mountPath: /logs, readOnly: true, mountPropagation: HostToContainer}
    - {name: work, mountPath: /own, subPathExpr: $(APP)/x}
    securityContext:
      runAsUser: 1001
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
      seccompProfile: {type: Unconfined}
`+settings)
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	user, other, group := int64(1001), int64(1000), int64(2000)
	c := got.Containers[0]
	process, err := c.Process([]string{"10.1.2.3", "fd00::1"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Process{
		Command:  []string{"serve", "red"},
		Args:     []string{"--at", "10.1.2.3", "$(IP)", "$(NOBODY)", "100$"},
		Env:      []string{"S_color=red", "S_index.html=hello", "S_logo=hi", "COLOR=red", "TOKEN=s3cret", "IP=10.1.2.3", "APP=site", "BOTH=red-site"},
		SubPaths: []string{"a/b", "", "site/x"},
	}, process); diff != "" {
		t.Error(diff)
	}
	if _, err := c.Process(nil); err == nil || !strings.Contains(err.Error(), "IP") {
		t.Errorf("without an address: %v", err)
	}

	security := Security{User: &other, NonRoot: true, Groups: []int64{7, 2000}}
	own := Security{
		User: &user, NonRoot: true, Groups: []int64{7, 2000}, ReadOnlyRoot: true, NoNewPrivileges: true, Unconfined: true,
		DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CAP_NET_BIND_SERVICE"},
	}
	want := Pod{
		Name: "web", Labels: map[string]string{"app": "site"}, FSGroup: &group,
		Volumes: []Volume{
			{Name: "work"},
			{Name: "fast", Memory: true, Size: 1 << 20},
			{Name: "logs", HostPath: "/var/log", HostType: corev1.HostPathDirectory},
			{Name: "site", ReadOnly: true, Files: []File{{Path: "www/index.html", Data: []byte("hello"), Mode: 0o400}}},
			{Name: "keys", ReadOnly: true, Memory: true, Files: []File{{Path: "token", Data: []byte("s3cret"), Mode: 0o600}}},
		},
		Init: []Container{
			{ID: "web-setup", Name: "setup", Image: "demo", Pull: corev1.PullIfNotPresent, Security: security},
			{ID: "web-proxy", Name: "proxy", Image: "demo", Pull: corev1.PullIfNotPresent, Sidecar: true, Security: security},
		},
		Containers: []Container{{
			ID: "web-c", Name: "c", Image: "demo:1", Pull: corev1.PullNever, Dir: "/srv",
			Resources: Resources{Memory: 64 << 20, CPUQuota: 50_000, CPUShares: 2048}, Security: own,
			Mounts: []Mount{
				{Volume: "work", Path: "/work"},
				{Volume: "logs", Path: "/logs", ReadOnly: true, Propagation: corev1.MountPropagationHostToContainer},
				{Volume: "work", Path: "/own"},
			},
		}},
	}
	hidden := cmp.FilterPath(func(p cmp.Path) bool {
		switch p.Last().String() {
		case ".command", ".args", ".env", ".subPath", ".Options", ".Digest":
			return true
		}
		return false
	}, cmp.Ignore())
	if diff := cmp.Diff(want, got, hidden); diff != "" {
		t.Error(diff)
	}
	o := got.Options
	if o.GetHostname() != "box" || o.GetNetwork() != sandboxapi.Network_NETWORK_CNI || !o.GetNamespaces().GetSharePid() ||
		o.GetSysctls()["net.ipv4.ip_forward"] != "1" || o.GetExtraHosts()["store"] != "10.0.0.1" ||
		strings.Join(o.GetDns().GetOptions(), " ") != "ndots:2 rotate" || len(o.GetPortMappings()) != 1 || o.GetPortMappings()[0].GetHostPort() != 8080 {
		t.Errorf("options: %v", o)
	}
}

// TestErrors: each names the document and the field.
func TestErrors(t *testing.T) {
	const c = "document 1 (Pod \"web\"): spec.containers[0]."
	for name, tc := range map[string]struct{ text, want string }{
		"empty":               {"", "pod.yaml: holds no Pod"},
		"no YAML":             {"a: [", "pod.yaml: document 1: "},
		"tab":                 {"a:\n\tb: c", "pod.yaml: document 1: "},
		"key twice":           {"kind: Pod\nkind: Pod\n", "already"},
		"no object":           {"- a\n", "document 1: is no object of Kubernetes"},
		"no version":          {"kind: Pod\n", "apiVersion must be given"},
		"second document":     {settings + "---\nkind: 3\n", "document 3: is no object"},
		"no name":             {"apiVersion: v1\nkind: Pod\nspec: {}\n", "document 1 (Pod): metadata.name: is missing"},
		"name":                {strings.Replace(pod("", ""), "name: web", "name: We/b", 1), "metadata.name: \"We/b\""},
		"no containers":       {"apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n", "spec.containers: is missing"},
		"type":                {pod("hostNetwork: 3", ""), "document 1 (Pod): spec.hostNetwork: is 3, and must be true or false"},
		"type in a list":      {pod("", "ports: [{containerPort: 80}, {containerPort: x}]"), "spec.containers[0].ports[1].containerPort: is the text \"x\", and must be a whole number"},
		"number for text":     {pod("", "env: [{name: A, value: 1}]"), "spec.containers[0].env[0].value: is 1, and must be text: put it in quotes"},
		"object for list":     {pod("", "args: {a: b}"), "spec.containers[0].args: is an object, and must be a list"},
		"quantity":            {pod("", "resources: {limits: {memory: 64MB!}}"), "spec.containers[0].resources.limits[memory]: is the text \"64MB!\", and must be a quantity"},
		"negative quantity":   {pod("", "resources: {limits: {memory: -1}}"), c + "resources.limits[memory]: -1 is below zero"},
		"little memory":       {pod("", "resources: {limits: {memory: 1k}}"), "too little"},
		"two containers":      {pod("", "") + "  - {name: c, image: demo}\n", "spec.containers[1].name: \"c\" is the name of another"},
		"no image":            {strings.Replace(pod("", ""), "image: demo", "image: ''", 1), c + "image: is missing"},
		"pull policy":         {pod("", "imagePullPolicy: Sometimes"), c + "imagePullPolicy: \"Sometimes\""},
		"restart policy":      {pod("restartPolicy: Maybe", ""), "spec.restartPolicy: \"Maybe\""},
		"relative dir":        {pod("", "workingDir: a"), c + "workingDir"},
		"volume type":         {pod("volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]", ""), "spec.volumes[0]: only emptyDir"},
		"host path":           {pod("volumes: [{name: v, hostPath: {path: a}}]", ""), "spec.volumes[0].hostPath.path"},
		"host path type":      {pod("volumes: [{name: v, hostPath: {path: /a, type: Dir}}]", ""), "spec.volumes[0].hostPath.type"},
		"no config map":       {pod("volumes: [{name: v, configMap: {name: none}}]", "") + settings, "spec.volumes[0].configMap.name: the file holds no ConfigMap \"none\""},
		"no key":              {pod("", "env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: size}}}]") + settings, "configMapKeyRef.key: ConfigMap \"settings\" has no \"size\""},
		"item goes up":        {pod("volumes: [{name: v, configMap: {name: settings, items: [{key: color, path: ../x}]}}]", "") + settings, "items[0].path"},
		"no volume":           {pod("", "volumeMounts: [{name: v, mountPath: /v}]"), c + "volumeMounts[0].name: spec.volumes has no \"v\""},
		"mount on root":       {pod("volumes: [{name: v}]", "volumeMounts: [{name: v, mountPath: /}]"), c + "volumeMounts[0].mountPath"},
		"mount twice":         {pod("volumes: [{name: v}]", "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v/}]"), "volumeMounts[1].mountPath: /v is mounted on twice"},
		"subPath goes up":     {pod("volumes: [{name: v}]", "volumeMounts: [{name: v, mountPath: /v, subPath: a/../../b}]"), "must not go up"},
		"subPathExpr":         {pod("volumes: [{name: v}]", "env: [{name: P, value: ..}]\nvolumeMounts: [{name: v, mountPath: /v, subPathExpr: a/$(P)/$(P)/b}]"), "must not go up"},
		"propagation":         {pod("volumes: [{name: v}]", "volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]"), "for privileged containers"},
		"port":                {pod("", "ports: [{containerPort: 70000}]"), c + "ports[0].containerPort"},
		"port taken":          {pod("", "ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80, protocol: TCP}]"), "ports[1].hostPort: 80 is taken twice"},
		"port of the host":    {pod("hostNetwork: true", "ports: [{containerPort: 80, hostPort: 81}]"), "must be the containerPort"},
		"field":               {pod("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]"), "fieldRef.fieldPath: \"status.phase\" is not known here"},
		"no node":             {pod("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]"), "the manifest gives no spec.nodeName"},
		"address of the host": {pod("hostNetwork: true", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]"), "a network of its own"},
		"capability":          {pod("", "securityContext: {capabilities: {add: [FLY]}}"), c + "securityContext.capabilities.add[0]"},
		"root after all":      {pod("", "securityContext: {runAsNonRoot: true, runAsUser: 0}"), "contradicts runAsUser"},
		"user":                {pod("securityContext: {runAsUser: -1}", ""), "spec.securityContext.runAsUser"},
		"seccomp":             {pod("", "securityContext: {seccompProfile: {type: Localhost, localhostProfile: x}}"), "Localhost"},
		"SELinux":             {pod("", "securityContext: {seLinuxOptions: {level: s0}}"), c + "securityContext.seLinuxOptions: cannot be done"},
		"user namespace":      {pod("hostUsers: false", ""), "spec.hostUsers"},
		"same Pod":            {pod("", "") + "---\n" + pod("", ""), "document 2 (Pod \"web\"): there is another Pod"},
		"same ConfigMap":      {pod("", "") + settings + settings, "another one of that name"},
		"dns":                 {pod("dnsPolicy: None", ""), "spec.dnsConfig.nameservers: is missing"},
		"long name":           {strings.Replace(pod("", ""), "name: c", "name: "+strings.Repeat("c", 63), 1) + "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read("pod.yaml", []byte(tc.text), Options{})
			if tc.want == "" && err == nil {
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want %q", err, tc.want)
			}
			if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "pod.yaml: ") {
				t.Errorf("class or file of %v", err)
			}
		})
	}
}

// TestAllErrors: a file is read to its end, and each error told once.
func TestAllErrors(t *testing.T) {
	text := pod("restartPolicy: Maybe\nsecurityContext: {runAsUser: -1}", "imagePullPolicy: x") + "  - {name: d, image: demo}\n"
	_, err := Read("pod.yaml", []byte(text), Options{})
	if many, ok := err.(Errors); !ok || len(many) != 3 {
		t.Errorf("%v", err)
	}
}

func TestWarnings(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string // parts
	}{
		"nothing": {pod("", ""), nil},
		"probes once": {pod("", "livenessProbe: {exec: {command: [a]}}") + "  - {name: d, image: demo, livenessProbe: {exec: {command: [b]}}}\n",
			[]string{"spec.containers[0].livenessProbe: probes are left to Kubernetes, ignored"}},
		"misspelt":          {pod("hostNetwrk: true", "imagePulPolicy: Never"), []string{`spec.containers[0].imagePulPolicy: Kubernetes has no such field`, `spec.hostNetwrk: Kubernetes has no such field`}},
		"restarts":          {pod("restartPolicy: Always", ""), []string{"spec.restartPolicy: nobody starts a container again"}},
		"unused":            {pod("subdomain: x", ""), []string{"spec.subdomain: is not supported here, ignored"}},
		"other kinds":       {pod("", "") + "---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\n", []string{"document 2 (Service): Service of v1 is left to Kubernetes"}},
		"nothing said":      {pod("affinity: {}\nsubdomain: ''", "livenessProbe: null"), nil},
		"as kubectl writes": {strings.Replace(pod("dnsPolicy: ClusterFirst", ""), "name: web,", "name: web, creationTimestamp: null,", 1) + "status: {}\n", nil},
		"storage":           {pod("", "resources: {limits: {ephemeral-storage: 1Gi}}"), []string{"resources.limits[ephemeral-storage]"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := mustRead(t, tc.text)
			if len(got) != len(tc.want) {
				t.Fatalf("%q, want %q", got, tc.want)
			}
			for i := range got {
				if !strings.Contains(got[i], tc.want[i]) {
					t.Errorf("%q, want %q", got[i], tc.want[i])
				}
			}
		})
	}
}

// TestDigest: it tells a change of what is asked for from one of how it is written.
func TestDigest(t *testing.T) {
	use := "env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: color}}}]"
	base := pod("", use) + settings
	digestOf := func(text string, opts Options) string {
		set, err := Read("pod.yaml", []byte(text), opts)
		if err != nil {
			t.Fatal(err)
		}
		return set.Pods[0].Digest
	}
	first := digestOf(base, Options{})
	for name, tc := range map[string]struct {
		text string
		opts Options
		same bool
	}{
		"a comment":        {"# hello\n---\n" + base, Options{}, true},
		"the same network": {base, Options{Network: sandboxapi.Network_NETWORK_CNI}, true},
		"another network":  {base, Options{Network: sandboxapi.Network_NETWORK_NONE}, false},
		"a used value":     {strings.Replace(base, "red", "blue", 1), Options{}, false},
		"an unused Secret": {strings.Replace(base, "s3cret", "other", 1), Options{}, true},
		"the image":        {strings.Replace(base, "image: demo", "image: demo2", 1), Options{}, false},
	} {
		if got := digestOf(tc.text, tc.opts); (got == first) != tc.same {
			t.Errorf("%s: the same: %v", name, got == first)
		}
	}
}

// FuzzRead: any text is refused or translated to what can be run.
func FuzzRead(f *testing.F) {
	f.Add([]byte(pod("volumes: [{name: v, configMap: {name: settings}}]", "volumeMounts: [{name: v, mountPath: /v, subPath: $(A)}]") + settings))
	f.Add([]byte(pod("hostNetwork: true\nrestartPolicy: Always", "securityContext: {privileged: true}")))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: b, image: c, env: [{name: A, value: $(A)}]}]}\n"))
	f.Add([]byte("a: &a [*a]\n---\n{}\n--- # x\nkind: Pod\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := Read("f", data, Options{})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		for _, p := range set.Pods {
			if p.Name == "" || len(p.Containers) == 0 || p.Digest == "" {
				t.Fatalf("%+v", p)
			}
			for _, c := range append(p.Init, p.Containers...) {
				process, err := c.Process([]string{"10.0.0.1"})
				if err != nil {
					t.Fatal(err)
				}
				for i, sub := range process.SubPaths {
					if sub != "" && !isLocal(sub) {
						t.Fatalf("%s: subPath %q", c.Mounts[i].Path, sub)
					}
				}
			}
			for _, v := range p.Volumes {
				for _, file := range v.Files {
					if !isLocal(file.Path) {
						t.Fatalf("%s: file %q", v.Name, file.Path)
					}
				}
			}
		}
	})
}
