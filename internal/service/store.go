package service

import (
	"context"
	"fmt"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

// storeService is containerd.services.sandbox.v1.Store.
type storeService struct {
	api.UnsafeStoreServer // see controllerService
	store                 sandbox.Store
}

var _ api.StoreServer = (*storeService)(nil)

func (s *storeService) Create(ctx context.Context, req *api.StoreCreateRequest) (*api.StoreCreateResponse, error) {
	if req.GetSandbox() == nil {
		return nil, fmt.Errorf("create sandbox: its record is missing: %w", errdefs.ErrInvalidArgument)
	}
	sb, err := s.store.Create(ctx, sandboxFromProto(req.GetSandbox()))
	if err != nil {
		return nil, err
	}
	return &api.StoreCreateResponse{Sandbox: sandbox.ToProto(&sb)}, nil
}

func (s *storeService) Update(ctx context.Context, req *api.StoreUpdateRequest) (*api.StoreUpdateResponse, error) {
	if req.GetSandbox() == nil {
		return nil, fmt.Errorf("update sandbox: its record is missing: %w", errdefs.ErrInvalidArgument)
	}
	sb, err := s.store.Update(ctx, sandboxFromProto(req.GetSandbox()), req.GetFields()...)
	if err != nil {
		return nil, err
	}
	return &api.StoreUpdateResponse{Sandbox: sandbox.ToProto(&sb)}, nil
}

func (s *storeService) Delete(ctx context.Context, req *api.StoreDeleteRequest) (*api.StoreDeleteResponse, error) {
	if err := s.store.Delete(ctx, req.GetSandboxID()); err != nil {
		return nil, err
	}
	return &api.StoreDeleteResponse{}, nil
}

func (s *storeService) List(ctx context.Context, req *api.StoreListRequest) (*api.StoreListResponse, error) {
	sbs, err := s.store.List(ctx, req.GetFilters()...)
	if err != nil {
		return nil, err
	}
	resp := &api.StoreListResponse{}
	for i := range sbs {
		resp.List = append(resp.List, sandbox.ToProto(&sbs[i]))
	}
	return resp, nil
}

func (s *storeService) Get(ctx context.Context, req *api.StoreGetRequest) (*api.StoreGetResponse, error) {
	sb, err := s.store.Get(ctx, req.GetSandboxID())
	if err != nil {
		return nil, err
	}
	return &api.StoreGetResponse{Sandbox: sandbox.ToProto(&sb)}, nil
}
