"""The configuration: frozen pydantic models, one a section; unknown keys are refused.

A field's description stands under it. `load_config` reads a YAML file and `section.key=value`
overrides; `dump_config` writes a file that loads again to the same object.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cdb_video.errors import ConfigError

MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_DEPTH = 20
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


class Section(BaseModel):
    """Common to all sections: frozen, no unknown keys, described by the strings under fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_the_default(cls, values: Any) -> Any:
        # A section whose every line is commented out.
        return {} if values is None else values


def _not_a_bool(value: Any) -> Any:
    # In Python True is 1, and 1.0.
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _number_from_text(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 (no dot) as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number_from_text), BeforeValidator(_not_a_bool)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
# Strict: no true, no "3", no 3.0.
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]


# People are often numbered: 20 is the subject "20".
Subject = Annotated[str, Field(coerce_numbers_to_str=True)]


class RunConfig(Section):
    """Where a run lives, and its seed."""

    name: str | None = Field(None, pattern=r"^[^/\\]*[^/\\.][^/\\]*$")
    """Folder of the run in output_dir; null: the configuration's name and the next free number."""
    output_dir: str = "runs"
    """Folder of all runs."""
    seed: NonNegativeInt = Field(0, lt=2**63)
    """Of initial weights, order, clips and augmentation."""
    trackers: tuple[Literal["tensorboard"], ...] = ("tensorboard",)
    """Where figures go besides metrics.jsonl."""


class DataConfig(Section):
    """Which videos, and how they are read."""

    format: Literal["auto", "egtea", "table", "folder"] = "auto"
    """How the annotations are written (docs/data_format.md); auto: by looking."""
    root: str | None = None
    """Folder of the data; `demo` renders the demo data set into cache_dir."""
    annotations: str | None = None
    """Annotation file or folder, relative to root; null: where the format has it."""
    columns: dict[str, str] = {}
    """table: our column name -> the file's."""
    annotation_fps: Positive | None = None
    """table: frames a second that start_frame and stop_frame count in."""
    train_split: str | tuple[str, ...] = "train"
    """Annotation split(s) to train on."""
    val_split: str | tuple[str, ...] | None = "val"
    """Split for validation and difficulty; `held_out`: the hold_out_subjects of train_split;
    null: none, the last epoch is kept."""
    test_split: str | tuple[str, ...] | None = "auto"
    """Split that the selected checkpoint is evaluated on once, at the end; auto: `test`, where
    the data has one; null: none."""
    hold_out_subjects: tuple[Subject, ...] = ()
    """Subjects taken out of train_split for val_split `held_out`."""
    hold_out_column: str | None = None
    """Column with the subject; null: the format's own (table: participant)."""
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Library that decodes video files; folders of frames are recognised by themselves."""
    num_workers: NonNegativeInt = 2
    """Loader processes a rank; 0 decodes in the training process."""
    cache_dir: str = "~/.cache/cdb_video"
    """For downloaded weights and the demo data; nothing is ever written beside the data."""


class ClipConfig(Section):
    """Which frames make a clip, and how large they are."""

    num_frames: PositiveInt = 32
    """T."""
    stride: PositiveInt = 2
    """Source frames (with fps: grid steps) between neighbouring frames of a clip."""
    fps: Positive | None = None
    """Choose frames by presentation time on this grid; null: the video's own frames."""
    sampling: Literal["dense", "segments"] = "dense"
    """dense: T frames `stride` apart; segments: one frame from each of T equal parts (TSN)."""
    crop_size: PositiveInt = 224
    """Side of the crop that the model sees, in pixels."""
    short_side: PositiveInt = 256
    """Side that the video's shorter side is scaled to, of which the crop is cut, in pixels."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop_size > self.short_side:
            raise ValueError(
                f"crop_size={self.crop_size} must be at most short_side={self.short_side}"
            )
        return self


class ViewsConfig(Section):
    """Views of a video that are averaged in evaluation, in validation as well."""

    num_clips: PositiveInt = 1
    """Clips a video, the first at its start and the last at its end; 1: the middle."""
    num_crops: Annotated[Literal[1, 3], BeforeValidator(_not_a_bool)] = 1
    """Crops a clip along its longer side; 1: the centre."""

    @property
    def num_views(self) -> int:
        """V."""
        return self.num_clips * self.num_crops


class AugmentConfig(Section):
    """How training clips are varied."""

    crop: Literal["random_resized", "jitter"] = "random_resized"
    """random_resized: a window of random area and shape; jitter: a square from a random scale."""
    area: tuple[Fraction, Fraction] = (0.25, 1.0)
    """random_resized: least and largest share of the frame's area."""
    aspect: tuple[Positive, Positive] = (0.75, 1.3333)
    """random_resized: least and largest ratio of width to height."""
    scale: tuple[Positive, Positive] = (1.0, 1.25)
    """jitter: least and largest factor on clip.short_side."""
    flip: bool = True
    """Mirror left and right, every second clip."""
    no_flip_classes: dict[str, tuple[str, ...]] = {}
    """Head -> classes whose clips are never mirrored, such as {verb: [Turn left]}."""
    color_jitter: Fraction = 0.0
    """Largest change of brightness, contrast and saturation, as a share."""

    @model_validator(mode="after")
    def _ranges_increase(self) -> Self:
        for name in ("area", "aspect", "scale"):
            low, high = getattr(self, name)
            if low > high or low == 0:
                raise ValueError(
                    f"{name} must be [low, high] with 0 < low <= high, got {[low, high]}"
                )
        return self


class ModelConfig(Section):
    """The network."""

    backbone: str = "slowfast_r50"
    """A name of docs/backbones.md."""
    heads: tuple[str, ...] | None = None
    """Labels to learn, such as [verb, noun]; null: every label the data has."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.5
    """On the features, before the heads."""
    weights: str | None = None
    """Weights to start from: a path, a URL or a known name such as kinetics400; null: random."""
    allow_partial_weights: bool = False
    """Take a weights file of which less than half fits."""
    freeze_backbone: bool = False
    """Train the heads alone, with batch norm as it is."""


class DifficultyConfig(Section):
    """How the cdb loss measures the difficulty of a class."""

    source: Literal["val", "train"] = "val"
    """val: held-out clips, as the paper; train: running counts of the training batches."""
    ema: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the past in each measurement."""
    prior_strength: NonNegative = 0.0
    """Clips at the mean accuracy that are added to each class, against the noise of small ones."""
    floor: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Least difficulty; above 0 it keeps solved classes in training."""


class LossConfig(Section):
    """The loss of every head."""

    name: Literal["cross_entropy", "cdb"] = "cdb"
    """cdb: the class-wise difficulty-balanced loss over `base`."""
    tau: NonNegative | Literal["dynamic", "dynamic_release"] = "dynamic"
    """cdb: how strongly difficulty weighs; dynamic: the paper's; dynamic_release: its code's."""
    base: Literal["cross_entropy"] = "cross_entropy"
    """cdb: the per-sample loss that is weighed."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all classes."""
    head_weights: dict[str, NonNegative] = {}
    """Head -> its factor in the sum; 1 where not given."""
    difficulty: DifficultyConfig = DifficultyConfig()


class OptimConfig(Section):
    """The optimiser and its schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum, as the video papers; adamw: decoupled weight decay."""
    lr: Positive = 0.01
    """Peak learning rate, for the global batch as it is; never rescaled."""
    head_lr_scale: Positive = 1.0
    """Factor on lr for the heads."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """sgd: momentum; adamw: beta 1."""
    weight_decay: NonNegative = 1e-4
    """Not on biases and norms."""
    warmup_epochs: NonNegative = 0.0
    """Epochs of linear rise from lr / 100."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """cosine: to 0 at the end; steps: times step_factor at each share of step_at."""
    step_at: tuple[Fraction, ...] = (0.6,)
    """steps: shares of all epochs at which the rate falls."""
    step_factor: Fraction = 0.1
    """steps: what the rate is multiplied by."""


class TrainConfig(Section):
    """The loop."""

    epochs: PositiveInt = 30
    """Passes over the training clips."""
    global_batch_size: PositiveInt = 32
    """Clips a step, over every rank."""
    micro_batch_size: PositiveInt = 32
    """Clips a forward on one rank, at most; smaller ones add up to the same step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, fp32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU of the rank where there is one."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the gradient; null: any."""
    sync_batch_norm: bool = False
    """Batch statistics over all ranks; on GPUs only."""
    eval_every: PositiveInt = 1
    """Epochs between validations; the last epoch always validates."""
    log_every: PositiveInt = 10
    """Steps between the lines of metrics.jsonl, and between the loop's waits for the GPU."""
    keep_last: PositiveInt = 2
    """Checkpoints to keep, besides the best."""
    select_by: str | None = None
    """Head whose mean class accuracy picks the best epoch; null: action, else the heads' mean."""


class Config(Section):
    """Everything a run depends on."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    clip: ClipConfig = ClipConfig()
    views: ViewsConfig = ViewsConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        data, loss = self.data, self.loss
        if data.val_split == "held_out" and not data.hold_out_subjects:
            raise ValueError("data.hold_out_subjects is empty: data.val_split=held_out needs it")
        if data.hold_out_subjects and data.val_split != "held_out":
            raise ValueError(
                f"data.hold_out_subjects={list(data.hold_out_subjects)} is only used with "
                f"data.val_split=held_out, got data.val_split={data.val_split}"
            )
        # `auto` is the split named test, where there is one.
        test = "test" if data.test_split == "auto" else data.test_split
        roles = {"train": data.train_split, "val": data.val_split, "test": test}
        for first, second in (("val", "test"), ("train", "test"), ("train", "val")):
            if _names(roles[first]) & _names(roles[second]):
                raise ValueError(
                    f"data.{first}_split={getattr(data, f'{first}_split')} is also "
                    f"data.{second}_split={getattr(data, f'{second}_split')}: no clip may have two "
                    "roles, and training, difficulty and selection must never read the test split"
                )
        if loss.name == "cdb" and loss.difficulty.source == "val" and data.val_split is None:
            raise ValueError(
                "loss.difficulty.source=val needs data.val_split; without one, use "
                "loss.difficulty.source=train"
            )
        return self


def _names(split: str | tuple[str, ...] | None) -> set[str]:
    return {split} if isinstance(split, str) else set(split or ())


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides on top.

    Raises:
        ConfigError: naming the key, the value and what is allowed.

    """
    values = _read_yaml(Path(path))
    for override in overrides:
        _apply(values, override)
    return parse_config(values, source=str(path))


def parse_config(values: Mapping[str, Any], *, source: str) -> Config:
    """The configuration of nested dicts; `source` names them in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_line(error)}") from None


def dump_config(config: Config) -> str:
    """YAML that loads again to the same object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, not a configuration")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        _refuse_unfolding(path, text)
        _refuse_repeated_keys(path, yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
    except ConfigError:
        raise
    # ValueError: a date such as 2024-13-01, a number of 5,000 digits.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: must hold sections such as `train:`, got {type(values).__name__}"
        )
    return values


def _refuse_unfolding(path: Path, text: str) -> None:
    # A few lines of aliases can unfold to gigabytes, a few thousand brackets overflow the stack.
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ConfigError(f"{path}: aliases (*name) are not allowed")
        depth += isinstance(token, OPENING)
        depth -= isinstance(token, CLOSING)
        if depth > MAX_CONFIG_DEPTH:
            raise ConfigError(f"{path}: nested deeper than {MAX_CONFIG_DEPTH}")


def _refuse_repeated_keys(path: Path, node: yaml.Node | None) -> None:
    # YAML takes the last of two equal keys: a section written twice would lose its first half.
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(path, item)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}:{line}: {name} is written twice")
            seen.add(name)
            _refuse_repeated_keys(path, value)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"{override!r}: overrides are written section.key=value")
    *sections, last = key.split(".")
    value = _value(text, of_text=_takes_text(key))
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {section} is {inner!r}, not a section")
        values = inner
    values[last] = value


def _value(text: str, *, of_text: bool) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    # A run may be named 2024, 0017 or yes.
    is_text = of_text and value is not None and not isinstance(value, str | list | dict)
    return text if is_text else value


def _takes_text(key: str) -> bool:
    annotation: Any = Config
    for part in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(part)
        annotation = field.annotation if field else None
    return annotation is str or str in get_args(annotation)


def _first_line(error: ValidationError) -> str:
    details = error.errors()
    if details[0]["type"] == "extra_forbidden":
        return f"{_key(details[0]['loc'])}: no such key{_hint(details[0]['loc'])}"
    # A union fails once a member: the one that got furthest into the value is meant.
    field = _key(details[0]["loc"])
    related = [d for d in details if f"{_key(d['loc'])}.".startswith(f"{field}.")]
    first = max(related, key=lambda detail: len(_key(detail["loc"]).split(".")))
    key = _key(first["loc"])
    messages = dict.fromkeys(
        detail["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("a valid tuple", "a list")
        for detail in details
        if _key(detail["loc"]) == key
    )
    message = " or ".join(messages)
    if isinstance(first["input"], dict | BaseModel) and first["type"] == "value_error":
        return f"{key}.{message}".removeprefix(".")
    return f"{key}: {message}, got {first['input']!r}"


def _key(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location if not _is_union_branch(part))


def _is_union_branch(part: object) -> bool:
    # pydantic names the member of a union that failed, such as "function-before[...]".
    return isinstance(part, str) and ("[" in part or part in {"float", "str", "tuple"})


def _hint(location: Sequence[int | str]) -> str:
    *sections, last = map(str, location)
    model: Any = Config
    for section in sections:
        model = model.model_fields[section].annotation
    close = difflib.get_close_matches(last, model.model_fields, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    elsewhere = [path for path in _all_keys(Config) if path.rsplit(".", 1)[-1] == last]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; there are {', '.join(model.model_fields)}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = field.annotation
        if isinstance(inner, type) and get_origin(inner) is None and issubclass(inner, BaseModel):
            yield from _all_keys(inner, f"{prefix}{name}.")
