"""What `accelerate` did."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Site:
    """One normalisation of the network."""

    path: str  # of the module, such as "input_blocks.1.0.out_layers.0"
    kind: str  # what lies in one op, such as "GroupNorm + FiLM + SiLU"; in [brackets] what only some of its calls have
    replaced: bool
    reason: str = ""  # why it was left, or why not more of it is in the op

    def __str__(self):
        text = f"{'replaced' if self.replaced else 'left    '}  {self.path or '(the module itself)'}: {self.kind}"
        return f"{text} ({self.reason})" if self.reason else text


@dataclass
class Report:
    """Every site, replaced or left; `undo()` gives the network its own forwards back. print() lists the sites."""

    sites: list = field(default_factory=list)
    error: float | None = None  # of the probe's output, max |difference| / max |output|
    _undo: object = None

    @property
    def replaced(self):
        return [site for site in self.sites if site.replaced]

    @property
    def left(self):
        return [site for site in self.sites if not site.replaced]

    def undo(self):
        self._undo()

    def __str__(self):
        head = f"{len(self.replaced)} of {len(self.sites)} norms replaced"
        if self.error is not None:
            head += f", the probe's output within {self.error:.1e}"
        return "\n".join([head, *(f"  {site}" for site in self.sites)])
