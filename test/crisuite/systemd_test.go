package crisuite

import (
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestSystemdDriver: servers that are told to let systemd make cgroups refuse
// containers where there is no systemd, as there is none in the suite's /run, and
// say that this is why. kubelet learns the driver from them. They are the spec's
// own.
func TestSystemdDriver(t *testing.T) {
	if running == nil {
		t.Skip("needs root")
	}
	for engine, servers := range map[string]map[string]string{
		daemon.EngineEmbedded: {embedded: harness.Handler},
		daemon.EngineStock:    {stock: harness.Handler, reference: "runc"},
	} {
		opts := opts
		opts.Engine, opts.SystemdCgroup = engine, true
		h := harness.New(t, opts)
		h.StartDaemon()
		for name, handler := range servers {
			t.Run(name, func(t *testing.T) {
				h := harness.Share(t, h.Daemon)
				s := &server{CRI: h.ConnectCRI(handler), Host: h, Name: name, t: t}
				config, err := s.RuntimeConfig(h.Context(time.Minute), &runtime.RuntimeConfigRequest{})
				if err != nil || config.GetLinux().GetCgroupDriver() != runtime.CgroupDriver_SYSTEMD {
					t.Errorf("the cgroup driver that kubelet is told of: %v, %v", config, err)
				}
				cfg := s.PodConfig(runtime.NamespaceMode_POD)
				cfg.Linux.CgroupParent = "/" + h.Token + ".slice"
				if err := h.AddCgroup(cfg.Linux.CgroupParent); err != nil {
					t.Fatal(err)
				}
				if err := s.tryPod(cfg); err == nil || !strings.Contains(err.Error(), "systemd") {
					t.Errorf("got %v, want a refusal for want of systemd", err)
				}
			})
		}
	}
}
