// Standard normals from the counter RNG (DESIGN 4).
#include "quad.cuh"

namespace fastdiff {
namespace cuda {
namespace {

template <class T, int kAccess>
__global__ void __launch_bounds__(kBlock) normal_kernel(const NormalParams p, const Walk walk, const Strides strides) {
  const Quad q = find_quad<kAccess>(walk, strides);
  if (q.b >= walk.B || q.count == 0) return;
  float noise[kQuad];
  draw_quad<kAccess>(p.rng, p.sample_ids, p.stream, q, noise);
  store_quad<kAccess, T>(p.out, strides, q, noise);
}

}  // namespace

Status normal(const NormalParams& p, Place place) {
  const Walk walk = make_walk(p.B, p.C, p.S, p.layout);
  const Access access = access_of(walk, {{p.out, p.dtype, p.layout}});
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * walk.quads == 0) return Status{};
    const auto kernel =
        kernel_of(access, normal_kernel<T, kElements>, normal_kernel<T, kVectors>, normal_kernel<T, kTiles>);
    const Strides strides = make_strides(p.layout, p.C, p.S);
    return launch(kernel, grid_of(walk, access), block_of(walk, access), 0, place, p, walk, strides);
  });
}

}  // namespace cuda
}  // namespace fastdiff
