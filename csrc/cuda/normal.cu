// Standard normals from the counter RNG (DESIGN 4).
#include "quad.cuh"

namespace fastdiff {
namespace cuda {
namespace {

template <class T, int kAccess, int N>
__global__ void __launch_bounds__(kBlock) normal_kernel(const NormalParams p, const Walk walk, const Strides strides) {
  const Quad q = find_quad<kAccess, N>(walk, strides);
  if (q.b >= walk.B || q.count == 0) return;
  float noise[N];
  draw_quad<kAccess>(p.rng, p.sample_ids, p.stream, q, noise);
  store_quad<kAccess>(reached<T>(p.out, p.dtype), strides, q, noise);
}

}  // namespace

Status normal(const NormalParams& p, Place place) {
  Walk walk = make_walk(p.B, p.C, p.S, p.layout);
  const Access access = widen_walk(walk, p.layout, {{p.out, p.dtype, p.layout}});
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * walk.quads == 0) return Status{};
    const auto kernel = kernel_of<T>(walk, [=](auto width) {
      constexpr int N = decltype(width)::value;
      return kernel_of(access, normal_kernel<Any, kElements, kQuad>, normal_kernel<Loose<T>, kVectors, N>,
                       normal_kernel<Loose<T>, kTiles, N>);
    });
    const Strides strides = make_strides(p.layout, p.C, p.S);
    return launch(kernel, grid_of(walk, access), block_of(walk, access), 0, place, p, walk, strides);
  });
}

}  // namespace cuda
}  // namespace fastdiff
