// The launchers of csrc/ssim_cuda.cpp as operators of images of the CPU, for a driver that stands
// in for CUDA's.
#include <torch/csrc/stable/library.h>

#include "../../csrc/ssim_cuda.cpp"

STABLE_TORCH_LIBRARY_IMPL(ssim_fused_standin, CPU, m) {
  m.impl("loss", TORCH_BOX(&ssim_fused::loss_cuda));
  m.impl("loss_and_gradients", TORCH_BOX(&ssim_fused::loss_and_gradients_cuda));
  m.impl("loss_map", TORCH_BOX(&ssim_fused::loss_map_cuda));
  m.impl("loss_backward", TORCH_BOX(&ssim_fused::loss_backward_cuda));
  m.impl("loss_and_pool", TORCH_BOX(&ssim_fused::loss_and_pool_cuda));
  m.impl("unpool", TORCH_BOX(&ssim_fused::unpool_cuda));
  m.impl("unpool_", TORCH_BOX(&ssim_fused::unpool_in_place_cuda));
}
