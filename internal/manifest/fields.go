package manifest

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	metadataPath = field.NewPath("metadata")
	specPath     = field.NewPath("spec")
)

// treatment is what becomes of a field.
type treatment struct {
	refuse bool
	why    string // "": it is honoured, with all below it, or means nothing here
}

var honoured = treatment{}

// Why fields are left alone.
var (
	probes     = treatment{why: "probes are left to Kubernetes"}
	hooks      = treatment{why: "hooks are left to Kubernetes"}
	scheduling = treatment{why: "scheduling is left to Kubernetes"}
	accounts   = treatment{why: "service accounts are left to Kubernetes"}
	confines   = treatment{refuse: true, why: "cannot be done, and the Pod would be less confined than it asks for: leave it out, or run it in Kubernetes"}
)

// fields say what becomes of each field of a Pod. "container" stands for containers
// and for initContainers. A field that is not here, nor has one below it, is left
// alone with a warning: what Kubernetes adds in later versions is told by itself.
var fields = map[string]treatment{
	"kind": honoured, "apiVersion": honoured, "status": honoured,
	"metadata": honoured, // what is not used of it describes the object, not the Pod

	"spec.hostname": honoured, "spec.hostAliases": honoured,
	"spec.hostNetwork": honoured, "spec.hostPID": honoured, "spec.hostIPC": honoured,
	"spec.shareProcessNamespace": honoured,
	"spec.dnsPolicy":             honoured, "spec.dnsConfig": honoured,
	"spec.restartPolicy": honoured, // a warning of its own
	"spec.nodeName":      honoured,
	"spec.volumes":       honoured,
	"spec.resources":     honoured,
	"spec.hostUsers":     honoured, // false is refused

	"spec.securityContext.runAsUser":                honoured,
	"spec.securityContext.runAsGroup":               honoured,
	"spec.securityContext.runAsNonRoot":             honoured,
	"spec.securityContext.fsGroup":                  honoured,
	"spec.securityContext.supplementalGroups":       honoured,
	"spec.securityContext.sysctls":                  honoured,
	"spec.securityContext.seccompProfile":           honoured,
	"spec.securityContext.appArmorProfile":          honoured, // Localhost is refused
	"spec.securityContext.seLinuxOptions":           confines,
	"spec.securityContext.supplementalGroupsPolicy": honoured, // Strict is refused

	"spec.serviceAccountName": accounts, "spec.serviceAccount": accounts, "spec.automountServiceAccountToken": accounts,
	"spec.nodeSelector": scheduling, "spec.affinity": scheduling, "spec.tolerations": scheduling,
	"spec.schedulerName": scheduling, "spec.priority": scheduling, "spec.priorityClassName": scheduling,
	"spec.preemptionPolicy": scheduling, "spec.topologySpreadConstraints": scheduling,
	"spec.schedulingGates": scheduling, "spec.overhead": scheduling,
	"spec.readinessGates":                probes,
	"spec.enableServiceLinks":            honoured, // there are no services
	"spec.terminationGracePeriodSeconds": {why: "say how long to wait when you stop it: caisson sandbox stop -t"},
	"spec.activeDeadlineSeconds":         {why: "deadlines are left to Kubernetes"},
	"spec.imagePullSecrets":              {why: "pull the images first: caisson image pull"},
	"spec.ephemeralContainers":           {refuse: true, why: "cannot be applied: use caisson run --sandbox"},
	"spec.resourceClaims":                {refuse: true, why: "devices are claimed by Kubernetes, and not there without it"},
	"spec.os":                            honoured,

	"container.name": honoured, "container.image": honoured, "container.imagePullPolicy": honoured,
	"container.command": honoured, "container.args": honoured, "container.workingDir": honoured,
	"container.env": honoured, "container.envFrom": honoured, "container.tty": honoured,
	"container.ports": honoured, "container.volumeMounts": honoured,
	"container.resources.limits": honoured, "container.resources.requests": honoured,
	"container.resources.claims": {refuse: true, why: "devices are claimed by Kubernetes, and not there without it"},
	"container.restartPolicy":    honoured,
	"container.volumeDevices":    {refuse: true, why: "block devices are mapped by Kubernetes only: mount the device as a hostPath"},
	"container.livenessProbe":    probes, "container.readinessProbe": probes, "container.startupProbe": probes,
	"container.lifecycle":              hooks,
	"container.stdin":                  {why: "nobody is at its standard input: use caisson exec -i"},
	"container.stdinOnce":              {why: "nobody is at its standard input: use caisson exec -i"},
	"container.terminationMessagePath": {why: "nobody reads it here"}, "container.terminationMessagePolicy": {why: "nobody reads it here"},

	"container.securityContext.runAsUser":                honoured,
	"container.securityContext.runAsGroup":               honoured,
	"container.securityContext.runAsNonRoot":             honoured,
	"container.securityContext.privileged":               honoured,
	"container.securityContext.capabilities":             honoured,
	"container.securityContext.readOnlyRootFilesystem":   honoured,
	"container.securityContext.allowPrivilegeEscalation": honoured,
	"container.securityContext.seccompProfile":           honoured,
	"container.securityContext.appArmorProfile":          honoured,
	"container.securityContext.seLinuxOptions":           confines,
	"container.securityContext.procMount":                honoured, // Unmasked is refused
}

var containerLists = regexp.MustCompile(`^spec\.(containers|initContainers)\[\]`)

// warnUnused goes through what a Pod says and reports what is not done, each kind of
// field once.
func (d *document) warnUnused() {
	if len(d.errs) > 0 {
		return
	}
	told := map[string]bool{}
	d.walk(d.raw, "", "", told)
}

// walk follows a value; at is its path in the document, rule the same without indexes.
func (d *document) walk(raw any, at, rule string, told map[string]bool) {
	if isEmpty(raw) {
		return // says nothing
	}
	rule = containerLists.ReplaceAllString(rule, "container")
	if t, ok := fields[rule]; ok || rule != "" && !leadsToField(rule) {
		switch {
		case ok && t.why == "" || told[rule]:
		case t.refuse:
			d.failAt(at, t.why)
		case ok:
			d.warn(at, "%s, ignored", t.why)
		case !d.unknown[at]:
			d.warn(at, "is not supported here, ignored")
		}
		told[rule] = true
		return
	}
	switch value := raw.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			d.walk(value[key], join(at, key), join(rule, key), told)
		}
	case []any:
		for i, v := range value {
			d.walk(v, fmt.Sprintf("%s[%d]", at, i), rule+"[]", told)
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// leadsToField says whether there is a field below a path.
func leadsToField(rule string) bool {
	switch rule {
	case "spec", "spec.containers", "spec.initContainers", "container":
		return true
	}
	for name := range fields {
		if strings.HasPrefix(name, rule+".") {
			return true
		}
	}
	return false
}

func isEmpty(raw any) bool {
	switch value := raw.(type) {
	case nil:
		return true
	case map[string]any:
		return len(value) == 0
	case []any:
		return len(value) == 0
	case string:
		return value == ""
	case bool:
		return !value
	}
	return false
}

// warnUnknown reports a field that Kubernetes does not have, or one that is there twice.
func (d *document) warnUnknown(err error) {
	path, ok := strings.CutPrefix(err.Error(), `unknown field "`)
	if !ok {
		d.fail(nil, "%v", err)
		return
	}
	path = strings.TrimSuffix(path, `"`)
	d.unknown[path] = true
	d.warn(path, "Kubernetes has no such field, ignored")
}
