package service

import (
	"context"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// runtimeService is containerd.runtime.sandbox.v1.Sandbox, the service a shim
// offers for the one sandbox it runs; here it serves them all, by their ids.
// The same value serves gRPC and ttrpc.
//
// CreateSandboxRequest.bundle_path is not used: a sandbox keeps its files in a
// directory of its own and takes no specification from a bundle. The deprecated
// fields of UpdateSandboxRequest are not used either, containerd sets none.
type runtimeService struct {
	api.UnsafeSandboxServer // see controllerService
	ctl                     sandbox.Controller
}

var (
	_ api.SandboxServer       = (*runtimeService)(nil)
	_ api.TTRPCSandboxService = (*runtimeService)(nil)
)

func (s *runtimeService) CreateSandbox(ctx context.Context, req *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	sb, err := record(req.GetSandboxID(), "", nil)
	if err != nil {
		return nil, err
	}
	opts := createOptions(req.GetRootfs(), req.GetOptions(), req.GetNetnsPath(), req.GetAnnotations())
	if err := s.ctl.Create(ctx, sb, opts...); err != nil {
		return nil, err
	}
	return &api.CreateSandboxResponse{}, nil
}

func (s *runtimeService) StartSandbox(ctx context.Context, req *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	inst, err := s.ctl.Start(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.StartSandboxResponse{
		Pid:       inst.Pid,
		CreatedAt: timestamppb.New(inst.CreatedAt),
		Spec:      typeurl.MarshalProto(inst.Spec),
	}, nil
}

func (s *runtimeService) Platform(ctx context.Context, req *api.PlatformRequest) (*api.PlatformResponse, error) {
	p, err := s.ctl.Platform(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.PlatformResponse{Platform: &types.Platform{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion,
	}}, nil
}

func (s *runtimeService) StopSandbox(ctx context.Context, req *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	if err := s.ctl.Stop(ctx, req.GetSandboxID(), stopOptions(req.GetTimeoutSecs())...); err != nil {
		return nil, err
	}
	return &api.StopSandboxResponse{}, nil
}

func (s *runtimeService) WaitSandbox(ctx context.Context, req *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	exit, err := s.ctl.Wait(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.WaitSandboxResponse{ExitStatus: exit.ExitStatus, ExitedAt: timestamppb.New(exit.ExitedAt)}, nil
}

func (s *runtimeService) SandboxStatus(ctx context.Context, req *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	st, err := s.ctl.Status(ctx, req.GetSandboxID(), req.GetVerbose())
	if err != nil {
		return nil, err
	}
	return &api.SandboxStatusResponse{
		SandboxID: st.SandboxID,
		Pid:       st.Pid,
		State:     st.State,
		Info:      st.Info,
		CreatedAt: timestamppb.New(st.CreatedAt),
		ExitedAt:  timestamppb.New(st.ExitedAt),
		Extra:     typeurl.MarshalProto(st.Extra),
	}, nil
}

// PingSandbox answers if the sandbox exists; the controller has no cheaper
// question than its status.
func (s *runtimeService) PingSandbox(ctx context.Context, req *api.PingRequest) (*api.PingResponse, error) {
	if _, err := s.ctl.Status(ctx, req.GetSandboxID(), false); err != nil {
		return nil, err
	}
	return &api.PingResponse{}, nil
}

func (s *runtimeService) ShutdownSandbox(ctx context.Context, req *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	if err := s.ctl.Shutdown(ctx, req.GetSandboxID()); err != nil {
		return nil, err
	}
	return &api.ShutdownSandboxResponse{}, nil
}

func (s *runtimeService) SandboxMetrics(ctx context.Context, req *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	m, err := s.ctl.Metrics(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.SandboxMetricsResponse{Metrics: m}, nil
}

func (s *runtimeService) UpdateSandbox(ctx context.Context, req *api.UpdateSandboxRequest) (*api.UpdateSandboxResponse, error) {
	sb, err := record(req.GetSandboxID(), "", req.GetSandbox())
	if err != nil {
		return nil, err
	}
	if err := s.ctl.Update(ctx, sb.ID, sb, req.GetFields()...); err != nil {
		return nil, err
	}
	return &api.UpdateSandboxResponse{}, nil
}
