"""What the shapes of an OpenAI checkpoint tell of its network: levels, widths, attention, resampling."""

from . import options


class Layout:
    """channels, stem, channel_mult, num_res_blocks, attention_resolutions, scale_shift, downsample, upsample, pool,
    out_channels.

    Input blocks are numbered through: the stem is 0, then num_res_blocks of a level and what halves it, and so on. A
    block that resamples has the names of one that does not; where it stands follows from the decoder, which marks its
    own, or from the encoder's pool.
    """

    def __init__(self, shapes, given):
        self.shapes, self.given = shapes, given
        self.channels = shapes["time_embed.0.weight"][1]
        self.stem = shapes["input_blocks.0.0.weight"][0]
        self.last = max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
        self.pool = self._pool()
        self.out_channels = shapes[self._last_layer()][0]
        self.downsample, self.upsample, self.num_res_blocks = self._resampling()
        starts = range(1, self.last + 1, self.num_res_blocks + 1)
        widths = [shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0] for i in starts]
        self.channel_mult = tuple(width / self.channels for width in widths)
        self.attention_resolutions = tuple(
            given["image_size"] >> level
            for level, i in enumerate(starts)
            if f"input_blocks.{i}.1.qkv.weight" in shapes
        )
        time, width = shapes["input_blocks.1.0.emb_layers.1.weight"][0], widths[0]
        self.scale_shift = time == 2 * width

    def _pool(self):
        names = self.shapes
        if any(name.startswith("output_blocks.") for name in names):
            return None
        if "out.2.positional_embedding" in names:
            return "attention"
        if len(names["out.0.weight"]) == 1:
            return "adaptive"
        return "spatial_v2" if "out.3.weight" in names else "spatial"

    def _last_layer(self):
        """Its weight's name: pools differ in where it stands."""
        names = {None: "2", "adaptive": "3", "attention": "2.c_proj", "spatial": "2", "spatial_v2": "3"}
        return f"out.{names[self.pool]}.weight"

    def _resampling(self):
        """(downsample, upsample, num_res_blocks)."""
        places = range(1, self.last + 1)
        for kind, halves in (("conv", self._is_conv), ("pool", self._is_empty)):
            found = [i for i in places if halves(i)]
            if found:
                return kind, self._upsample(found[0] - 1), found[0] - 1
        if self.pool:
            return "block", "block", self._from_pool()
        marked = [i for i in range(100) if self._upsample(i) == "block"]
        return ("block", "block", marked[0]) if marked else ("conv", "conv", self.last)

    def _is_conv(self, i):
        return f"input_blocks.{i}.0.op.weight" in self.shapes

    def _is_empty(self, i):
        return f"input_blocks.{i}.0.in_layers.0.weight" not in self.shapes

    def _upsample(self, i):
        """How the i-th output block ends."""
        for kind, name in (("conv", "conv.weight"), ("block", "in_layers.0.weight")):
            if any(f"output_blocks.{i}.{j}.{name}" in self.shapes for j in (1, 2)):
                return kind
        return "conv" if self.pool else "nearest"

    def _from_pool(self):
        """Blocks per level of an encoder that halves by blocks, or has one level: its number of places is L (n + 1) -
        1."""
        if self.given.get("num_res_blocks"):
            return self.given["num_res_blocks"]
        if self.pool == "attention":
            size = round((self.shapes["out.2.positional_embedding"][1] - 1) ** 0.5)
            levels = (self.given["image_size"] // size).bit_length()
            return (self.last + 1) // levels - 1
        fitting = [n for n in range(1, self.last + 1) if (self.last + 1) % (n + 1) == 0 and self._fits(n)]
        if len(fitting) != 1:
            options.require(self.given, ["num_res_blocks"])
        return fitting[0]

    def _fits(self, n):
        """Whether n blocks alike per level, then one without attention that keeps the width, are what stands there."""
        for start in range(1, self.last + 1, n + 1):
            if len({self._kind(i) for i in range(start, start + n)}) > 1:
                return False
            halves = start + n
            if halves < self.last and self._kind(halves) != (self._kind(start)[0], False):
                return False
        return True

    def _kind(self, i):
        """(width, whether it attends) of the i-th input block."""
        width = self.shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0]
        return width, f"input_blocks.{i}.1.qkv.weight" in self.shapes
