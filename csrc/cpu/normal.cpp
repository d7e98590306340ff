// Standard normals from the counter RNG (DESIGN 4).
#include "kernels.h"
#include "tile.h"

namespace fastdiff {
namespace FD_LEVEL {

Status normal(const NormalParams& p) {
  if (p.dtype > kF64) return {kUnsupported, 0, p.dtype};
  const Grid grid = make_grid(p.B, p.C, p.S, p.layout);
  const View out = make_view(p.out, p.dtype, p.layout, p.C, p.S);
  for_each_tile(grid, p.num_threads, [&](const Tile& tile) {
    Buffer<float> buffer;
    float* there = in_place<float>(out, grid, tile);
    float* values = there ? there : buffer.at;
    draw(noise_key(p.rng, p.sample_ids, tile.b, p.stream), grid, tile, values);
    flush(out, grid, tile, values);
  });
  return {};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
