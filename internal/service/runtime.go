package service

import (
	"context"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	controllerapi "github.com/containerd/containerd/api/services/sandbox/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/request"
)

// runtimeService is containerd.runtime.sandbox.v1.Sandbox, the service a shim
// offers for the one sandbox it runs; here it serves them all, by their ids: the
// Controller service in other words. The same value serves gRPC and ttrpc. What
// it returns beside an error is not sent.
//
// CreateSandboxRequest.bundle_path is not used: a sandbox keeps its files in a
// directory of its own and takes no specification from a bundle. The deprecated
// fields of UpdateSandboxRequest are not used either, containerd sets none.
type runtimeService struct {
	api.UnsafeSandboxServer // see controllerService
	controller              controllerService
	// started is what an earlier Start has answered; nil where no request comes again.
	started func(ctx context.Context, sandboxID string) (core.ControllerInstance, error)
}

var (
	_ api.SandboxServer       = (*runtimeService)(nil)
	_ api.TTRPCSandboxService = (*runtimeService)(nil)
)

func (s *runtimeService) CreateSandbox(ctx context.Context, req *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	_, err := s.controller.Create(ctx, &controllerapi.ControllerCreateRequest{
		SandboxID: req.GetSandboxID(), Rootfs: req.GetRootfs(), Options: req.GetOptions(),
		NetnsPath: req.GetNetnsPath(), Annotations: req.GetAnnotations(),
	})
	if errdefs.IsAlreadyExists(err) && request.From(ctx).Again {
		err = nil // An earlier daemon has done it.
	}
	return &api.CreateSandboxResponse{}, err
}

func (s *runtimeService) StartSandbox(ctx context.Context, req *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	inst, err := s.controller.ctl.Start(ctx, req.GetSandboxID())
	if errdefs.IsFailedPrecondition(err) && request.From(ctx).Again && s.started != nil {
		// An earlier daemon has done it, or it is as the client is told now.
		if done, derr := s.started(ctx, req.GetSandboxID()); derr == nil {
			inst, err = done, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return &api.StartSandboxResponse{Pid: inst.Pid, CreatedAt: timestamppb.New(inst.CreatedAt), Spec: typeurl.MarshalProto(inst.Spec)}, nil
}

func (s *runtimeService) Platform(ctx context.Context, req *api.PlatformRequest) (*api.PlatformResponse, error) {
	r, err := s.controller.Platform(ctx, &controllerapi.ControllerPlatformRequest{SandboxID: req.GetSandboxID()})
	return &api.PlatformResponse{Platform: r.GetPlatform()}, err
}

func (s *runtimeService) StopSandbox(ctx context.Context, req *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	_, err := s.controller.Stop(ctx, &controllerapi.ControllerStopRequest{SandboxID: req.GetSandboxID(), TimeoutSecs: req.GetTimeoutSecs()})
	return &api.StopSandboxResponse{}, err
}

func (s *runtimeService) WaitSandbox(ctx context.Context, req *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	r, err := s.controller.Wait(ctx, &controllerapi.ControllerWaitRequest{SandboxID: req.GetSandboxID()})
	return &api.WaitSandboxResponse{ExitStatus: r.GetExitStatus(), ExitedAt: r.GetExitedAt()}, err
}

func (s *runtimeService) SandboxStatus(ctx context.Context, req *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	r, err := s.controller.Status(ctx, &controllerapi.ControllerStatusRequest{SandboxID: req.GetSandboxID(), Verbose: req.GetVerbose()})
	return &api.SandboxStatusResponse{
		SandboxID: r.GetSandboxID(), Pid: r.GetPid(), State: r.GetState(), Info: r.GetInfo(),
		CreatedAt: r.GetCreatedAt(), ExitedAt: r.GetExitedAt(), Extra: r.GetExtra(),
	}, err
}

// PingSandbox answers if the sandbox exists; the controller has no cheaper
// question than its status.
func (s *runtimeService) PingSandbox(ctx context.Context, req *api.PingRequest) (*api.PingResponse, error) {
	_, err := s.controller.Status(ctx, &controllerapi.ControllerStatusRequest{SandboxID: req.GetSandboxID()})
	return &api.PingResponse{}, err
}

func (s *runtimeService) ShutdownSandbox(ctx context.Context, req *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	_, err := s.controller.Shutdown(ctx, &controllerapi.ControllerShutdownRequest{SandboxID: req.GetSandboxID()})
	if errdefs.IsNotFound(err) && request.From(ctx).Again {
		err = nil // An earlier daemon has done it.
	}
	return &api.ShutdownSandboxResponse{}, err
}

func (s *runtimeService) SandboxMetrics(ctx context.Context, req *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	r, err := s.controller.Metrics(ctx, &controllerapi.ControllerMetricsRequest{SandboxID: req.GetSandboxID()})
	return &api.SandboxMetricsResponse{Metrics: r.GetMetrics()}, err
}

func (s *runtimeService) UpdateSandbox(ctx context.Context, req *api.UpdateSandboxRequest) (*api.UpdateSandboxResponse, error) {
	_, err := s.controller.Update(ctx, &controllerapi.ControllerUpdateRequest{
		SandboxID: req.GetSandboxID(), Sandbox: req.GetSandbox(), Fields: req.GetFields(),
	})
	return &api.UpdateSandboxResponse{}, err
}
