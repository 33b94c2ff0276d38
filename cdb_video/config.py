"""The configuration: frozen pydantic models, one a section; unknown keys are refused.

A field's description stands under it. `config_file` reads them from YAML and writes them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

BaseLossName = Literal[
    "cross_entropy",
    "weighted",
    "focal",
    "class_balanced",
    "ldam",
    "balanced_softmax",
    "logit_adjusted",
    "equalization",
    "seesaw",
    "recall",
]
"""The per-sample losses of `losses.LOSSES`."""


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


Magnitude = Annotated[int, Field(ge=0, le=30, strict=True)]


# People are often numbered: 20 is the subject "20".
Subject = Annotated[str, Field(coerce_numbers_to_str=True)]
# Classes often are: "4" and "9".
ClassName = Subject


def section_in(field: FieldInfo) -> type[Section] | None:
    """The section that a field is, or is if it is not null; None: it is none."""
    for choice in (field.annotation, *get_args(field.annotation)):
        if isinstance(choice, type) and issubclass(choice, Section):
            return choice
    return None


class RunConfig(Section):
    """Where a run lives, and its seed."""

    name: str | None = Field(None, pattern=r"^[^/\\]*[^/\\.][^/\\]*$")
    """Folder of the run in output_dir; null: the configuration's name and the next free number."""
    output_dir: str = "runs"
    """Folder of all runs."""
    seed: NonNegativeInt = Field(0, lt=2**63)
    """Of initial weights, order, clips and augmentation."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where figures and pictures go besides the run's own files; wandb: the extra of that name,
    with WANDB_PROJECT, WANDB_MODE and the like in the environment."""


class LongTailConfig(Section):
    """A long tail made of a balanced image data set, by one of `imbalance` and `majority_share`;
    `data.long_tail: null`, the default, keeps all of the training split."""

    imbalance: Annotated[Number, Field(ge=1)] | None = None
    """Images of the first class over those of the last; the classes between fall exponentially, as
    in CIFAR-LT; null: see majority_share."""
    majority_share: Annotated[Number, Field(ge=0.5, lt=1)] | None = None
    """Of two classes: the share of the first."""
    num_images: PositiveInt = 5000
    """majority_share: training images in all."""
    classes: tuple[ClassName, ...] | None = None
    """Classes to keep, in every split, the most frequent first; null: all, in the data's order."""
    draw: Literal["first", "random"] = "first"
    """Which images are kept, and which are data.val_per_class. first: by their order in the files,
    as CDB's code; random: drawn by run.seed, so that every seed of a comparison has its own, the
    same for all arms."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.imbalance is None) == (self.majority_share is None):
            raise ValueError(
                f"imbalance={self.imbalance} with majority_share={self.majority_share}: give one "
                "of the two"
            )
        if self.classes is not None and len(set(self.classes)) < max(len(self.classes), 2):
            raise ValueError(f"classes={list(self.classes)}: name two or more, each of them once")
        return self


class DataConfig(Section):
    """Which videos, and how they are read."""

    format: Literal["auto", "egtea", "epic100", "table", "folder", "features", "images"] = "auto"
    """How the annotations are written (docs/data_format.md); auto: by looking. features: files of
    what a backbone has seen, `<split>.npz` in root (docs/foundation.md). images: clips of one
    frame, of MNIST's files, CIFAR, folders of images, ImageNet-LT's lists."""
    root: str | None = None
    """Folder of the data; `demo` renders the demo data set into cache_dir, with rare classes that
    are easy and hard, `demo-rare-hard` and `demo-rare-easy` with those that are one of them."""
    annotations: str | None = None
    """Annotation file or folder, relative to root; null: where the format has it."""
    columns: dict[str, str] = {}
    """table: our column name -> the file's, or a template of its columns, "{video_id}.mp4"."""
    annotation_fps: Positive | None = None
    """table: frames a second that start_frame, stop_frame and last_frame count in."""
    annotation_first_frame: NonNegativeInt = 0
    """table: the number that they give the first frame."""
    split_seed: NonNegativeInt = Field(0, lt=2**63)
    """folder without split folders: of the draw of train, val and test."""
    val_per_class: NonNegativeInt = 0
    """images: so many of each training class, the last in the files' order, leave training and are
    the split `val`: the balanced set that CDB's code measures difficulty on. Before the tail."""
    long_tail: LongTailConfig | None = None
    """images: see data.long_tail.*"""
    group_pattern: str | None = None
    """folder: regular expression with one group, found in a file's name without the suffix, such
    as `^(P\\d+)`: what it finds is the recording, and a draw keeps a recording in one split."""
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
    pixels: Literal["rgb", "yuv"] = "rgb"
    """yuv: clips travel as the planes that files store and become RGB on the device. It spares the
    loader where a window is not scaled, as in evaluation at 224 of a shorter side of 256; scaling
    planes costs more than scaling RGB (docs/performance.md). Pixels at edges of colour differ from
    rgb's. For video files, with decoder pyav, not in_memory."""
    num_workers: NonNegativeInt = 2
    """Loader processes a rank; 0 decodes in the training process."""
    in_memory: bool = False
    """Decode the frames of every clip once, at the start, scaled to clip.short_side, and keep
    them: for data that fits into memory, once a rank. All cores decode. num_workers is best 0 then,
    as long as crops are small. Of images: their evaluation crops, as one tensor, and batches are
    cut and changed as wholes, without loader processes; with augment.crop=pad."""
    sampler: Literal["instance", "sqrt", "class_balanced", "progressive", "cdb"] = "instance"
    """instance: every clip once an epoch; the others draw a class, then one of its clips: by the
    square root of its count, evenly, from instance to evenly over the epochs, or, CDB-S, by
    difficulty^tau (of loss.difficulty and loss.tau)."""
    sampler_head: str | None = None
    """Head whose classes are drawn; null: action, else the only head."""
    on_error: Literal["raise", "skip"] = "raise"
    """raise: the first clip that does not decode stops the run; skip: it is left out of loss,
    counts and figures, and recorded."""
    max_skipped: NonNegativeInt = 100
    """skip: clips of all splits that may be left out; one more stops the run."""
    decode_timeout_s: Positive = 60.0
    """Seconds that one clip, with all its views, may take to decode; then it has failed. The
    process is ended, whatever it is doing; with num_workers=0, when the library lets it."""
    untrusted: bool = False
    """The videos and annotations are a stranger's: paths and links that lead out of root, rare
    codecs and enormous frames are refused, each video is decoded in a process of its own with
    limits on memory, time and files, and an FFmpeg with known holes is refused (SECURITY.md)."""
    cache_dir: str = "~/.cache/cdb_video"
    """For downloaded weights, the demo data and the packet indices of video files; nothing is ever
    written beside the data."""

    @model_validator(mode="after")
    def _strangers_are_for_pyav(self) -> Self:
        if self.untrusted and self.decoder != "pyav":
            raise ValueError(f"untrusted=true needs decoder=pyav, got decoder={self.decoder}")
        return self

    @model_validator(mode="after")
    def _planes_are_there(self) -> Self:
        if self.pixels == "yuv" and (self.decoder != "pyav" or self.in_memory):
            other = "in_memory=true" if self.in_memory else f"decoder={self.decoder}"
            raise ValueError(f"pixels=yuv needs decoder=pyav and in_memory=false, got {other}")
        return self


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

    crop: Literal["random_resized", "jitter", "pad"] = "random_resized"
    """random_resized: a window of random area and shape; jitter: a square from a random scale; pad:
    evaluation's crop, moved by up to `padding` pixels, black coming in, as for CIFAR."""
    padding: NonNegativeInt = 4
    """pad: pixels."""
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
    rand_augment: tuple[PositiveInt, Magnitude] | None = None
    """[operations, magnitude]: so many of torchvision's RandAugment on every clip, the same on all
    its frames, such as [2, 9]; null: none."""
    erase: Fraction = 0.0
    """The chance that a rectangle of a clip becomes grey, the same one in all its frames."""
    mixup: NonNegative = 0.0
    """alpha: every clip is mixed with the next of its micro batch, in shares from Beta(alpha,
    alpha), and so is the loss of their labels; such as 0.8; 0: off. Training accuracy is then not
    counted."""
    cutmix: NonNegative = 0.0
    """alpha: as mixup, with a rectangle of the other clip; with both, each micro batch is given one
    of the two."""

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
    """A name of docs/backbones.md; `hf:` and a folder or hub id, such as
    `hf:facebook/vjepa2-vitl-fpc64-256`, with `@` and a revision if need be; an image network of
    torchvision, such as resnet50; or features, with data.format features."""
    heads: tuple[str, ...] | None = None
    """Labels to learn, such as [verb, noun]; null: every label the data has."""
    head_type: Literal["linear", "cosine", "attentive"] = "linear"
    """cosine: features and class vectors of length 1, their cosine times 30; ldam needs it.
    attentive: a learned query looks over the tokens of the clip, and dropout is on what it found;
    for backbones with tokens."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.5
    """On the features, before the heads."""
    drop_path: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Stochastic depth: the chance that the last block is left out of a training step, the others
    less, the first never; null: as the library has it (torchvision's MViT 0.2, Swin 0.1, others 0).
    """
    weights: str | None = None
    """Weights to start from: a path, a URL or a known name such as kinetics400; null: random, of
    an hf: model its own."""
    allow_partial_weights: bool = False
    """Take a weights file of which less than half fits."""
    freeze_backbone: bool = False
    """Train the heads alone, with batch norm as it is."""
    grad_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: for
    small cards; the same gradients, about a third more work."""


class DifficultyConfig(Section):
    """How the cdb loss and the cdb sampler measure the difficulty of a class."""

    source: Literal["val", "train", "crossfit"] = "val"
    """val: held-out clips, as the paper; train: running counts of the training batches; crossfit:
    a linear classifier of the model's features of the training clips, fitted on four fifths and
    counted on the last, five times: one more pass over them."""
    statistic: Literal["recall", "f1", "loss"] = "recall"
    """Difficulty of a class: 1 - recall, as the paper; 1 - F1, which also counts clips of other
    classes taken for it; or 1 - exp(-its mean negative log-likelihood)."""
    ema: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the past in each measurement."""
    prior_strength: NonNegative = 0.0
    """Clips at the mean accuracy that are added to each class, against the noise of small ones."""
    floor: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Least difficulty; above 0 it keeps solved classes in training."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs at the start in which all weights stay 1; the first one always is such an epoch."""
    update_every: PositiveInt = 1
    """Epochs from one measurement to the next; with source val, of those that validate."""
    max_clips_per_class: PositiveInt | None = None
    """crossfit: training clips that are looked at, at most so many of a class; null: all. val: with
    train.eval_every above 1, the epochs between validations measure difficulty too, on at most so
    many validation clips of a class; null: they do not."""


class LossConfig(Section):
    """The loss of every head."""

    name: Literal[BaseLossName, "cdb"] = "cdb"
    """A loss of docs/losses.md; cdb: the class-wise difficulty-balanced loss over `base`."""
    tau: NonNegative | Literal["dynamic", "dynamic_release"] = "dynamic"
    """cdb: how strongly difficulty weighs; dynamic: the paper's; dynamic_release: its code's."""
    base: BaseLossName = "cross_entropy"
    """cdb: the per-sample loss that is weighed."""
    options: dict[str, Any] = {}
    """Options of the named loss (of cdb: of its base), such as {gamma: 1} for focal."""
    defer: Fraction | None = None
    """Deferred re-weighting (DRW): the share of the epochs after which classes weigh by their
    effective number (beta 0.9999), or, of weighted and class_balanced, as they have it; null: off.
    """
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
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Factor on lr from each layer of the backbone to the one before it, and from the heads to the
    last block; a norm behind the blocks has the heads' lr without head_lr_scale. 1: all alike. For
    fine-tuning transformers, such as 0.75."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """sgd: momentum; adamw: beta 1."""
    nesterov: bool = True
    """sgd: Nesterov's momentum, as in PySlowFast; false: the plain one, as in most image code."""
    weight_decay: NonNegative = 1e-4
    """Not on biases, norms, position tables and class tokens."""
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
    """Clips a forward on one rank, at most; a step is cut into even parts, which add up to it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, fp32 on a CPU."""
    compile: bool = False
    """Train the network as one graph of fused kernels (torch.compile; docs/performance.md): up to
    minutes at the start, faster steps after it. Evaluation runs the network as it is."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU of the rank where there is one."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the gradient; null: any."""
    ema: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Decay a step of averaged weights, such as 0.999, which validation, difficulty, selection and
    every tool then use; null: the last step's weights."""
    max_bad_steps: PositiveInt = 10
    """Steps in a row with a loss or gradient that is no finite number, after which the run stops;
    such a step changes nothing, and is recorded with its clips."""
    compress_gradients: bool = False
    """Sum gradients over the ranks in bf16, half the traffic: for slow networks."""
    sync_batch_norm: bool = False
    """Batch statistics over all ranks; on GPUs only."""
    precise_bn: PositiveInt | None = None
    """Steps' worth of training clips by which batch norm's statistics are measured again after each
    epoch, such as 200: for small micro batches, and for `ema`. null: running means, as usual."""
    eval_every: PositiveInt = 1
    """Epochs between validations; the last epoch always validates."""
    log_every: PositiveInt = 10
    """Steps between the lines of metrics.jsonl, and between the loop's waits for the GPU."""
    save_every_steps: PositiveInt | None = None
    """Steps between checkpoints in the middle of an epoch; null: none by number."""
    save_every_minutes: Positive | None = 30.0
    """Minutes between checkpoints in the middle of an epoch; null: none by time."""
    rank_timeout_s: Positive = 600.0
    """Seconds that a rank waits for another one before it gives up, and with it the run."""
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
        if (data.format == "features") != (self.model.backbone == "features"):
            raise ValueError(
                f"data.format={data.format} with model.backbone={self.model.backbone}: features "
                "are for one another, format and backbone"
            )
        self._images_agree()
        if self.augment.mixup or self.augment.cutmix:
            self._mixed_clips_are_not_counted()
        if data.pixels == "yuv" and (self.augment.rand_augment or self.augment.erase):
            raise ValueError(
                "data.pixels=yuv: augment.rand_augment and augment.erase change RGB; use rgb"
            )
        if data.format == "features" and self.augment.cutmix:
            raise ValueError(
                f"augment.cutmix={self.augment.cutmix:g}: features have no pixels to cut; use mixup"
            )
        if data.format == "features" and data.in_memory:
            raise ValueError("data.in_memory=true: is for video; features are in memory already")
        if self.uses_difficulty and loss.difficulty.source == "val" and data.val_split is None:
            raise ValueError(
                "loss.difficulty.source=val needs data.val_split; without one, use "
                "loss.difficulty.source=crossfit or train"
            )
        if self.uses_difficulty and loss.difficulty.source == "val":
            tested = [name for name in _names(data.val_split) if name.split("_")[0] == "test"]
            if tested:
                raise ValueError(
                    f"data.val_split={tested[0]}: difficulty never comes from a test split; hold "
                    "clips of the training split out (data.val_split=held_out), or use "
                    "loss.difficulty.source=crossfit"
                )
        if data.sampler == "cdb" and loss.name == "cdb":
            raise ValueError(
                "data.sampler=cdb with loss.name=cdb: difficulty would count twice; choose another "
                "loss.name or data.sampler"
            )
        if loss.name == "logit_adjusted" and not isinstance(loss.tau, str):
            raise ValueError(
                f"loss.tau={loss.tau:g} is of cdb; the strength of logit_adjusted is "
                "loss.options={tau: ...}"
            )
        unseen = data.sampler == "cdb" and loss.difficulty.source == "train"
        if unseen and loss.difficulty.floor == 0:
            raise ValueError(
                "loss.difficulty.floor=0: a solved class would never be drawn again, and so never "
                "measured; data.sampler=cdb with loss.difficulty.source=train needs a floor above 0"
            )
        if self.measures_between_validations and loss.difficulty.statistic == "f1":
            raise ValueError(
                "loss.difficulty.statistic=f1 with loss.difficulty.max_clips_per_class="
                f"{loss.difficulty.max_clips_per_class}: F1 over some clips of each class is not "
                "that over all; use recall or loss"
            )
        if self.train.compile and self.model.grad_checkpointing:
            raise ValueError(
                "train.compile=true with model.grad_checkpointing=true: a compiled graph chooses "
                "by itself what to compute again; use one of them"
            )
        if "ldam" in self.loss_names and self.model.head_type != "cosine":
            raise ValueError(f"model.head_type={self.model.head_type}: the ldam loss needs cosine")
        return self

    def _images_agree(self) -> None:
        data = self.data
        if data.format != "images":
            given = "long_tail" if data.long_tail else "val_per_class" if data.val_per_class else ""
            if given:
                raise ValueError(f"data.{given}: is for data.format=images, got {data.format}")
            return
        if data.pixels == "yuv":
            raise ValueError("data.pixels=yuv: is for video; images are RGB")
        if self.clip.num_frames != 1:
            raise ValueError(
                f"clip.num_frames={self.clip.num_frames}: an image is a clip of 1 frame"
            )
        if self.views.num_clips != 1:
            raise ValueError(f"views.num_clips={self.views.num_clips}: an image has 1 clip")
        if not data.in_memory:
            return
        if self.augment.crop != "pad":
            raise ValueError(
                f"data.in_memory=true with augment.crop={self.augment.crop}: of images in memory a "
                "batch is cut as a whole; use augment.crop=pad or data.in_memory=false"
            )
        if self.views.num_crops != 1 or data.on_error != "raise":
            raise ValueError(
                f"data.in_memory=true of images: needs views.num_crops=1 and data.on_error=raise, "
                f"got {self.views.num_crops} and {data.on_error}"
            )

    def _mixed_clips_are_not_counted(self) -> None:
        key = "mixup" if self.augment.mixup else "cutmix"
        given = f"augment.{key}={getattr(self.augment, key):g}"
        if self.uses_difficulty and self.loss.difficulty.source == "train":
            raise ValueError(
                f"{given}: loss.difficulty.source=train counts training clips, and mixed clips "
                "have no one class; use val or crossfit"
            )
        if "recall" in self.loss_names:
            raise ValueError(
                f"{given}: the recall loss counts training clips, and mixed clips have no one class"
            )

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The loss, and of cdb its base."""
        loss = self.loss
        return (loss.name, loss.base) if loss.name == "cdb" else (loss.name,)

    @property
    def measures_between_validations(self) -> bool:
        """Whether difficulty is measured in epochs without validation too, on some of its clips."""
        difficulty = self.loss.difficulty
        capped = difficulty.source == "val" and difficulty.max_clips_per_class is not None
        return self.uses_difficulty and capped and self.train.eval_every > 1

    @property
    def draws_images(self) -> bool:
        """Whether run.seed also says which images a long tail keeps."""
        return self.data.long_tail is not None and self.data.long_tail.draw == "random"

    @property
    def uses_difficulty(self) -> bool:
        """Whether the difficulty of classes feeds the training."""
        return self.loss.name == "cdb" or self.data.sampler == "cdb"


def _names(split: str | tuple[str, ...] | None) -> set[str]:
    return {split} if isinstance(split, str) else set(split or ())
