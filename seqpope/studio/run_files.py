"""What files of runs and experiments say, as far as the page shows it; checked, for anybody may write them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class Told(BaseModel):
    """What files say; fields that the page does not show are passed over, nan is refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class Optimizer(Told):
    """What of the optimiser is shown."""

    steps: Count


class Settings(Told):
    """config.yaml of a run or of an experiment."""

    dataset: str
    position: str
    optimizer: Optimizer
    baseline: str = "none"
    domain: str = ""
    seed: int = 0
    seeds: Count = 1


class Estimate(Told):
    """A mean over seeds with its spread."""

    mean: float
    n: Count = 1
    sd: float | None = None
    low: float | None = None
    high: float | None = None


class Interval(Told):
    """A mean or difference with its interval."""

    mean: float
    low: float
    high: float
    pieces: Count | None = None


class Encoding(Told):
    """An encoding's runs together."""

    seeds: list[int]
    nats_per_token: Estimate
    units: dict[str, Estimate] = {}
    strata: dict[str, Estimate] = {}
    paper_protocol: Estimate | None = None
    accuracy: Estimate | None = None


class Difference(Told):
    """Two encodings, paired by seed."""

    a: str
    b: str
    seeds: list[int]
    seeds_without_twin: list[int] = []
    paired: list[float] = []
    over_seeds: Estimate | None = None
    over_pieces: Interval | None = None
    detectable: float | None = None
    verdict: str = ""


class Reference(Told):
    """An encoding against the best measured baseline of a stratum."""

    encoding: str
    stratum: str
    tokens: Count
    documents: Count
    nats_per_token: float
    best: str
    baselines: dict[str, float]
    difference: Interval
    verdict: str


class Trained(Told):
    """How a run was trained, up to its best step."""

    seed: int = 0
    step: Count | None = None
    steps: Count | None = None
    seconds: float | None = None
    precision: str | None = None
    validation_nats_per_token: float | None = None


class Unit(Told):
    """Nats of each unit, such as a base, and how many there are."""

    nats: float | None
    count: float


class Protocol(Told):
    """How a split was read."""

    window: Count | None = None
    stride: Count | None = None


class Bin(Told):
    """Positions in a piece, `to` left out."""

    from_: int = Field(alias="from")
    to: int
    tokens: Count
    nats_per_token: float | None


class Result(Told):
    """result.json of a run, or a run as report.json keeps it."""

    position: str
    dataset: str
    nats_per_token: float
    trained: Trained
    run: str = ""
    domain: str = ""
    split: str = "test"
    tokens_scored: Count = 0
    parameters: Count | None = None
    units: dict[str, Unit] = {}
    baselines: dict[str, float | None] = {}
    protocol: Protocol = Protocol()
    by_position: list[Bin] = []
    device: str = ""
    date: str = ""


class Report(Told):
    """report.json of an experiment."""

    encodings: dict[str, Encoding]
    differences: list[Difference] = []
    baselines: dict[str, float | None] = {}
    references: list[Reference] = []
    recipes_differ_in: dict[str, Any] = {}
    results: list[Result] = []
