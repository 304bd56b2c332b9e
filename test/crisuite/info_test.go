package crisuite

import (
	"maps"
	"slices"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimeInfo is what kubelet asks about the runtime itself.
type runtimeInfo struct {
	Name, APIVersion       string
	Conditions             map[string]bool
	Verbose                []string
	Features, CgroupDriver string
	RecursiveReadOnly      bool
}

// TestRuntimeInfo compares what servers tell of themselves.
func TestRuntimeInfo(t *testing.T) {
	compare(t, func(t *testing.T, s *server) runtimeInfo {
		version := ask(s, s.Version, &runtime.VersionRequest{})
		if version.Version == "" || version.RuntimeVersion == "" {
			t.Errorf("Version: %v", version)
		}
		status := ask(s, s.Status, &runtime.StatusRequest{Verbose: true})
		config := ask(s, s.RuntimeConfig, &runtime.RuntimeConfigRequest{})
		info := runtimeInfo{
			Name: version.RuntimeName, APIVersion: version.RuntimeApiVersion,
			Conditions:   map[string]bool{},
			Verbose:      slices.Sorted(maps.Keys(status.Info)),
			Features:     text(status.Features),
			CgroupDriver: text(config.Linux),
		}
		for _, c := range status.Status.Conditions {
			info.Conditions[c.Type] = c.Status
		}
		for _, ready := range []string{"RuntimeReady", "NetworkReady"} {
			if !info.Conditions[ready] {
				t.Errorf("condition %s among %v", ready, status.Status.Conditions)
			}
		}
		if quiet := ask(s, s.Status, &runtime.StatusRequest{}); len(quiet.Info) != 0 {
			t.Errorf("info that nobody asked for: %v", quiet.Info)
		}
		features := s.features()
		info.RecursiveReadOnly = features.GetRecursiveReadOnlyMounts()
		// The reference needs an OCI runtime with ID-mapped mounts for these, Caisson any.
		if !features.GetUserNamespaces() && s.Name != reference {
			t.Errorf("features of %s: %v", s.Handler, features)
		}
		return info
	})
}

// TestUpdateRuntimeConfig sets what kubelet learns from its API server.
func TestUpdateRuntimeConfig(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		update := func(cidr string) *runtime.UpdateRuntimeConfigRequest {
			return &runtime.UpdateRuntimeConfigRequest{RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: cidr}}}
		}
		for _, cidr := range []string{"", "10.20.0.0/16", "10.20.0.0/16,fd00::/64"} {
			ask(s, s.UpdateRuntimeConfig, update(cidr))
		}
		refuse(s, s.UpdateRuntimeConfig, update("no network"))
		// A network that is there already is left alone.
		if status := s.pod().status(); status.Network.GetIp() == "" {
			t.Errorf("pod after the update: %v", status)
		}
	})
}

// TestNothingListed: filters that fit nothing give empty lists, not errors.
func TestNothingListed(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		label := map[string]string{"nobody": "has this"}
		pods := ask(s, s.ListPodSandbox, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{LabelSelector: label}})
		containers := ask(s, s.ListContainers, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{LabelSelector: label}})
		stats := ask(s, s.ListContainerStats, &runtime.ListContainerStatsRequest{Filter: &runtime.ContainerStatsFilter{LabelSelector: label}})
		podStats := ask(s, s.ListPodSandboxStats, &runtime.ListPodSandboxStatsRequest{Filter: &runtime.PodSandboxStatsFilter{LabelSelector: label}})
		got := []int{len(pods.Items), len(containers.Containers), len(stats.Stats), len(podStats.Stats)}
		equal(t, "pods, containers, their stats, pods' stats", []int{0, 0, 0, 0}, got)
	})
}
