// Standard normals from the counter RNG (DESIGN 4).
#include "quad.cuh"

namespace fastdiff {
namespace cuda {
namespace {

template <class T, bool kVector>
__global__ void __launch_bounds__(kBlock) normal_kernel(const NormalParams p, const Walk walk, const Strides strides) {
  const Quad q = find_quad<kVector>(walk);
  if (q.b >= walk.B || q.count == 0) return;
  float noise[kQuad];
  draw_quad(p.rng, p.sample_ids, p.stream, q, noise);
  store_quad<kVector, T>(p.out, strides, q, noise);
}

}  // namespace

Status normal(const NormalParams& p, Place place) {
  const Walk walk = make_walk(p.B, p.C, p.S, p.layout);
  const bool vector = has_vectors(p.out, p.dtype, p.layout, walk);
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * walk.quads == 0) return Status{};
    const auto kernel = vector ? normal_kernel<T, true> : normal_kernel<T, false>;
    return launch(kernel, grid_of(walk), kBlock, 0, place, p, walk, make_strides(p.layout, p.C, p.S));
  });
}

}  // namespace cuda
}  // namespace fastdiff
