package manifest

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// CPUPeriod is what quotas are for, in microseconds.
const CPUPeriod = 100_000

// minMemory is what a runtime itself needs to start anything at all.
const minMemory = 512 << 10

// Resources are limits of a cgroup; 0 is none.
type Resources struct {
	Memory    int64 // bytes
	CPUQuota  int64 // microseconds per CPUPeriod
	CPUShares uint64
}

// resources become the cgroup's as Kubernetes makes them: a request of CPU is a weight,
// which the limit stands for if there is none; one of memory guides the scheduler only.
func (t *translator) resources(r corev1.ResourceRequirements, at *field.Path) Resources {
	var out Resources
	requested := false
	for _, list := range []struct {
		of corev1.ResourceList
		at *field.Path
	}{{r.Limits, at.Child("limits")}, {r.Requests, at.Child("requests")}} {
		names := make([]corev1.ResourceName, 0, len(list.of))
		for name := range list.of {
			names = append(names, name)
		}
		slices.Sort(names)
		limits := list.at.String() == at.Child("limits").String()
		for _, name := range names {
			amount, at := list.of[name], list.at.Key(string(name))
			switch {
			case amount.Sign() < 0:
				t.fail(at, "%s is below zero", amount.String())
			case name == corev1.ResourceMemory && limits:
				out.Memory = amount.Value()
				if out.Memory != 0 && out.Memory < minMemory {
					t.fail(at, "%s is too little to start anything: give at least 512Ki", amount.String())
				}
			case name == corev1.ResourceMemory:
			case name == corev1.ResourceCPU && limits:
				milli := min(amount.MilliValue(), 1<<40) // keeps the product an integer
				if milli > 0 {
					out.CPUQuota = max(milli*CPUPeriod/1000, 1000) // the kernel refuses less
				}
			case name == corev1.ResourceCPU:
				requested = true
				out.CPUShares = shares(amount.MilliValue())
			default:
				t.warn(at.String(), "is left to Kubernetes, ignored")
			}
		}
	}
	if cpu, ok := r.Limits[corev1.ResourceCPU]; ok && !requested && cpu.Sign() > 0 {
		out.CPUShares = shares(cpu.MilliValue())
	}
	return out
}

// shares is the weight of so many thousandths of a CPU, in the kernel's range.
func shares(milli int64) uint64 {
	return uint64(min(max(min(milli, 1<<40)*1024/1000, 2), 1<<18))
}
