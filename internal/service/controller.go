package service

import (
	"context"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// controllerService is containerd.services.sandbox.v1.Controller.
type controllerService struct {
	// Unsafe, so that a method containerd adds is a compile error here and not
	// an answer that it is unimplemented.
	api.UnsafeControllerServer
	ctl sandbox.Controller
}

var _ api.ControllerServer = (*controllerService)(nil)

func (s *controllerService) Create(ctx context.Context, req *api.ControllerCreateRequest) (*api.ControllerCreateResponse, error) {
	sb, err := record(req.GetSandboxID(), req.GetSandboxer(), req.GetSandbox())
	if err != nil {
		return nil, err
	}
	opts := createOptions(req.GetRootfs(), req.GetOptions(), req.GetNetnsPath(), req.GetAnnotations())
	if err := s.ctl.Create(ctx, sb, opts...); err != nil {
		return nil, err
	}
	return &api.ControllerCreateResponse{SandboxID: sb.ID}, nil
}

func (s *controllerService) Start(ctx context.Context, req *api.ControllerStartRequest) (*api.ControllerStartResponse, error) {
	inst, err := s.ctl.Start(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.ControllerStartResponse{
		SandboxID: inst.SandboxID,
		Pid:       inst.Pid,
		CreatedAt: timestamppb.New(inst.CreatedAt),
		Labels:    inst.Labels,
		Address:   inst.Address,
		Version:   inst.Version,
		Spec:      typeurl.MarshalProto(inst.Spec),
	}, nil
}

func (s *controllerService) Platform(ctx context.Context, req *api.ControllerPlatformRequest) (*api.ControllerPlatformResponse, error) {
	p, err := s.ctl.Platform(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.ControllerPlatformResponse{Platform: &types.Platform{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion,
	}}, nil
}

func (s *controllerService) Stop(ctx context.Context, req *api.ControllerStopRequest) (*api.ControllerStopResponse, error) {
	if err := s.ctl.Stop(ctx, req.GetSandboxID(), stopOptions(req.GetTimeoutSecs())...); err != nil {
		return nil, err
	}
	return &api.ControllerStopResponse{}, nil
}

func (s *controllerService) Wait(ctx context.Context, req *api.ControllerWaitRequest) (*api.ControllerWaitResponse, error) {
	exit, err := s.ctl.Wait(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.ControllerWaitResponse{ExitStatus: exit.ExitStatus, ExitedAt: timestamppb.New(exit.ExitedAt)}, nil
}

func (s *controllerService) Status(ctx context.Context, req *api.ControllerStatusRequest) (*api.ControllerStatusResponse, error) {
	st, err := s.ctl.Status(ctx, req.GetSandboxID(), req.GetVerbose())
	if err != nil {
		return nil, err
	}
	return &api.ControllerStatusResponse{
		SandboxID: st.SandboxID,
		Pid:       st.Pid,
		State:     st.State,
		Info:      st.Info,
		CreatedAt: timestamppb.New(st.CreatedAt),
		ExitedAt:  timestamppb.New(st.ExitedAt),
		Extra:     typeurl.MarshalProto(st.Extra),
		Address:   st.Address,
		Version:   st.Version,
	}, nil
}

func (s *controllerService) Shutdown(ctx context.Context, req *api.ControllerShutdownRequest) (*api.ControllerShutdownResponse, error) {
	if err := s.ctl.Shutdown(ctx, req.GetSandboxID()); err != nil {
		return nil, err
	}
	return &api.ControllerShutdownResponse{}, nil
}

func (s *controllerService) Metrics(ctx context.Context, req *api.ControllerMetricsRequest) (*api.ControllerMetricsResponse, error) {
	m, err := s.ctl.Metrics(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.ControllerMetricsResponse{Metrics: m}, nil
}

func (s *controllerService) Update(ctx context.Context, req *api.ControllerUpdateRequest) (*api.ControllerUpdateResponse, error) {
	sb, err := record(req.GetSandboxID(), req.GetSandboxer(), req.GetSandbox())
	if err != nil {
		return nil, err
	}
	if err := s.ctl.Update(ctx, sb.ID, sb, req.GetFields()...); err != nil {
		return nil, err
	}
	return &api.ControllerUpdateResponse{}, nil
}
