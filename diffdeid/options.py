"""All choices for faces and for video files: each with its default, the values that it may have, and a line of help.

The arguments of the pipelines are plain keywords. Their first line makes one options object of them, which is passed on whole.
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
    """Base of the options, which checks its fields when it is made.

    Raises:
        ValueError: a value has the wrong type, is none of the choices, or is out of range.
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
        """Make these options from keyword arguments; gives them and the arguments that are left."""
        own = {name: value for name, value in given.items() if name in cls.names()}
        return cls(**own), {name: value for name, value in given.items() if name not in own}

    def as_kind(self, kind: type[Options]) -> Any:
        """The part of these options that belongs to `kind`, a class that they extend."""
        return kind(**{name: getattr(self, name) for name in kind.names()})


@dataclass(frozen=True, kw_only=True)
class DeidentifyOptions(Options):
    """What becomes of a face.

    Attributes:
        level: how far the new identity is from the source at least, 1…10, see `stages.identity.least_distance`; a bound that none
            of twenty draws meets is lowered, and the report says so.
        num_inference_steps: denoising steps, 1…1000.
        guidance_scale: 1 is off; larger values exaggerate the new identity at twice the cost (1…1.5 is sensible).
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
        min_face: faces whose box is narrower or lower than this many pixels are covered; 0 is off.
        reconstruction: "fit" finds ρ by least squares on landmarks and pixels, "network" by the `reconstructor`.
    """

    level: int = choice(7, "How far the new person must be from the old one at least.", 1, 10)
    num_inference_steps: int = choice(4, "How many denoising steps to take.", 1, 1000, flag="--steps")
    guidance_scale: float = choice(1.0, "A value above 1 exaggerates the new person, at twice the cost.", 0)
    attributes: Literal["context", "any", "source"] = choice(
        "context", "The new person fits hair and body, is anybody, or has the sex, age, descent, beard and smile of the face."
    )
    keep_mouth: bool = choice(False, "Leave the mouth as it is.")
    fallback: Cover = choice("fill", "How to cover a face that cannot be replaced. `mosaic` and `blur` do not protect.")
    cover_scale: float = choice(1.3, "The size of a cover, as a multiple of the face's box.", 1.3, 10)
    threshold: float | None = choice(
        None, "The lowest detector score of a face. A lower one finds more. Default: the model's.", 0.02, 1
    )
    min_face: float = choice(0.0, "Cover faces that are smaller than this many pixels.", 0)
    reconstruction: Literal["fit", "network"] = choice(
        "fit", "How the 3D head is found: by least squares, or by the reconstructor network."
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
        "interpolate", "What to do where a face is lost for a moment: render it in between, cover it, or give up."
    )
    follow_light: bool = choice(False, "Estimate the light in every frame. This is for scenes whose light changes.")


@dataclass(frozen=True, kw_only=True)
class FileOptions(Options):
    """How a video file is read and written.

    Attributes:
        start, end: seconds between which frames are taken; all of the file by default.
        audio: "drop" writes no sound; "keep" copies it, and voices tell who speaks; "distort" lowers voices by four semitones,
            which anybody can undo, see `io.sound`.
        codec, crf, preset: of FFmpeg's encoder, see `VideoWriter`.
        resume: keep finished parts in a hidden folder beside the output until it is complete (with a list of faces, after that
            as well, for further corrections), and go on from those of an interrupted run of the same file, options and seed.
            The analysis is done again.
    """

    start: float | None = choice(None, "The second of the video to begin at.", 0)
    end: float | None = choice(None, "The second of the video to end at.", 0)
    audio: Literal["drop", "keep", "distort"] = choice(
        "drop", "What to do with the sound: drop it, keep it (voices tell who speaks), or lower the voices (which can be undone)."
    )
    codec: str | None = choice(None, "The encoder, by FFmpeg's name. Default: one for H.264, for WebM one for VP9.")
    crf: int = choice(18, "The quality of the video. A lower number looks better and makes a larger file.", 0, 63)
    preset: str | None = choice(None, "FFmpeg's preset, for instance `slow`, which takes longer and makes smaller files.")
    resume: bool = choice(False, "Keep the finished parts after an interruption, and go on from them.")

    @property
    def encoder(self) -> dict[str, Any]:
        """The arguments of a `VideoWriter` that are choices."""
        return {"codec": self.codec, "crf": self.crf, "preset": self.preset}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError(f"`end` must be later than `start`, got {self.start or 0:g} and {self.end:g}.")


@cache
def _types(kind: type[Options]) -> dict[str, Any]:
    return get_type_hints(kind)


def _check(entry: Field, kind: Any, value: Any) -> None:
    """Raise `ValueError` if a field may not have this value."""
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
