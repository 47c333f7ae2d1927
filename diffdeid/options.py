"""What becomes of faces, and how video files are read and written: every choice, its default, what it may be, a line of help.

The arguments of the pipelines are plain keywords; they become one of these on the first line, and travel whole from there.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

Cover = Literal["fill", "solid", "mosaic", "blur"]  # what hides a face that cannot be replaced, see `geometry.cover`


def choice(default: Any, help: str, least: float | None = None, most: float | None = None, flag: str | None = None) -> Any:
    """A field: its default, a line of help, the range of a number, and its name on the command line where that is shorter."""
    return field(default=default, metadata={"help": help, "least": least, "most": most, "flag": flag})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checks its fields when it is made.

    Raises:
        ValueError: a value is none of the choices, or out of range.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(entry, _types(type(self))[entry.name], getattr(self, entry.name))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all choices."""
        return tuple(entry.name for entry in fields(cls))

    @classmethod
    def split(cls, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """These options out of keyword arguments, and the arguments that are left."""
        own = {name: value for name, value in given.items() if name in cls.names()}
        return cls(**own), {name: value for name, value in given.items() if name not in own}

    def as_kind(self, kind: type[Options]) -> Any:
        """The part of these options that belongs to a class they extend."""
        return kind(**{name: getattr(self, name) for name in kind.names()})


@dataclass(frozen=True, kw_only=True)
class DeidentifyOptions(Options):
    """What becomes of a face.

    Attributes:
        level: how far the new identity is from the source at least, 1…10, see `stages.identity.least_distance`; a bound that none
            of twenty draws meets is lowered, and the report says so.
        num_inference_steps: denoising steps.
        guidance_scale: 1 is off; above, the identity is exaggerated (1…1.5 is sensible) at twice the cost.
        attributes: whom the new identity is drawn from. "context": people who fit what the result shows or keeps anyway (hair,
            neck, clothes, expression, pose, light, tone of the skin); "any": anybody, which gives least away and often
            contradicts hair and body; "source": people of the sex, age, descent, beard and smile that the erased face seems to
            have, which gives most away.
        keep_mouth: leave the mouth of the source (paper) instead of erasing it too; gives some of the identity away.
        fallback: how faces that cannot be de-identified are covered: "fill" by the colours around them, "solid" by black;
            "mosaic" and "blur" do not protect.
        cover_scale: size of covers, in face boxes. Smaller ones than the default would leave parts of faces.
        threshold: lowest detector score of a face, 0…1; lower finds more faces and takes more things for faces. `None` is the
            `detection_threshold` of the face analyser.
        min_face: faces whose box is narrower or lower than this many pixels are covered.
        reconstruction: "fit" finds ρ by least squares on landmarks and pixels, "network" by the `reconstructor`.
    """

    level: int = choice(7, "Least distance of the new identity from the old one.", 1, 10)
    num_inference_steps: int = choice(4, "Denoising steps.", 1, 1000, flag="--steps")
    guidance_scale: float = choice(1.0, "Exaggerates the new identity when above 1, at twice the cost.", 0)
    attributes: Literal["context", "any", "source"] = choice(
        "context", "The new person fits hair and body, is anybody, or has the face's sex, age, descent, beard and smile."
    )
    keep_mouth: bool = choice(False, "Keep the pixels of the mouth.")
    fallback: Cover = choice("fill", "Covers a face that could not be de-identified.")
    cover_scale: float = choice(1.3, "Size of covers, in face boxes.", 1.3, 10)
    threshold: float | None = choice(None, "Lowest detector score of a face; lower finds more. Default: the model's.", 0.02, 1)
    min_face: float = choice(0.0, "Cover faces smaller than this many pixels.", 0)
    reconstruction: Literal["fit", "network"] = choice(
        "fit", "How the 3D head is found: least squares, or the reconstructor network."
    )


@dataclass(frozen=True, kw_only=True)
class VideoOptions(DeidentifyOptions):
    """What becomes of the faces of a video.

    Attributes:
        on_miss: what becomes of a face that was lost for a moment: "interpolate" renders it where it must have been, "cover"
            covers it there, "error" gives up.
        follow_light: estimate the light γ in every frame instead of once a person.
    """

    on_miss: Literal["interpolate", "cover", "error"] = choice(
        "interpolate", "A face lost for a moment: render it in between, cover it, or give up."
    )
    follow_light: bool = choice(False, "Estimate the light in every frame, for light that changes.")


@dataclass(frozen=True, kw_only=True)
class FileOptions(Options):
    """How a video file is read and written.

    Attributes:
        start, end: seconds between which frames are taken; all of the file by default.
        audio: "keep" copies the sound; "distort" lowers voices by four semitones, which hides nobody from those who raise them
            again, see `io.sound`. Voices tell who speaks.
        codec, crf, preset: of FFmpeg's encoder, see `VideoWriter`.
        resume: keep finished parts in a hidden folder beside the output until it is complete (with a list of faces, after that
            as well, for further corrections), and go on from those of an
            interrupted run of the same file, options and seed. The analysis is done again.
    """

    start: float | None = choice(None, "Second to begin at.", 0)
    end: float | None = choice(None, "Second to end at.", 0)
    audio: Literal["drop", "keep", "distort"] = choice(
        "drop", "Sound: none, copied (voices tell who speaks), or with lower voices, which can be undone."
    )
    codec: str | None = choice(None, "FFmpeg's name of an encoder. Default: H.264, in WebM VP9.")
    crf: int = choice(18, "Quality: lower is better and larger.", 0, 63)
    preset: str | None = choice(None, "FFmpeg's trade of time for size, as `slow`.")
    resume: bool = choice(False, "Keep finished parts when interrupted, and go on from them.")

    @property
    def encoder(self) -> dict[str, Any]:
        """The arguments of a `VideoWriter` that are choices."""
        return {"codec": self.codec, "crf": self.crf, "preset": self.preset}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError(f"`end` must lie behind `start`, got {self.start or 0:g} and {self.end:g}.")


@cache
def _types(kind: type[Options]) -> dict[str, Any]:
    return get_type_hints(kind)


def _check(entry: Field, kind: Any, value: Any) -> None:
    """Raise `ValueError` for a value that a field may not have."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            names = [repr(name) for name in get_args(kind)]
            raise ValueError(f"`{entry.name}` must be {', '.join(names[:-1])} or {names[-1]}, got {value!r}.")
        return
    optional = type(None) in get_args(kind)
    base = next((one for one in get_args(kind) if one is not type(None)), kind)
    fitting = {int: Integral, float: Real}.get(base, base)
    if value is None and optional:
        return
    if not isinstance(value, fitting) or (isinstance(value, bool) and base is not bool):
        raise ValueError(f"`{entry.name}` must be {base.__name__}{' or None' if optional else ''}, got {value!r}.")
    if fitting in (Integral, Real):
        least, most = entry.metadata["least"], entry.metadata["most"]
        if most is not None and not least <= value <= most:
            raise ValueError(f"`{entry.name}` must be between {least} and {most}, got {value}.")
        if least is not None and not least <= value:
            raise ValueError(f"`{entry.name}` must be at least {least}, got {value}.")
