"""What an analysis measured: the numbers behind its pictures."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """How a feature's channels spread over spatial frequencies.

    Attributes:
        model: the model, as the user named it.
        images: number of images.
        channels: number of the feature's channels.
        grid: its (height, width).
        direct_energy: share of the sum of all squared coefficients that the direct components, the
            coefficients (0, 0), have.
        direct_amplitude: the same share of the sum of the mean absolute coefficients.
        mean_absolute: mean absolute coefficient over images, by channel, vertical and horizontal
            frequency (channels, height, width). Those of the alternative view are the same, but for
            a zero at (0, 0).
    """

    model: str
    images: int
    channels: int
    grid: tuple[int, int]
    direct_energy: float
    direct_amplitude: float
    mean_absolute: list[list[list[float]]]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """How far a projector's alternative components are from the teacher's.

    Attributes:
        run: the run, as the user named it.
        view: that the projector was trained for, "original" or "alternative".
        weight: of the alternative view's term at this stage in the run's loss.
        stage: "final", or "tpp" of a run whose loss has no final projector in this view.
        per_image: of each image the mean over tokens of the squared distance of unit-length
            tokens, from 0 (the same) to 4 (opposite); 2 is that of unrelated tokens.
        median: of these.
        projected: the first images' differences in two dimensions, (images, 2).
    """

    run: str
    view: str
    weight: float
    stage: str
    per_image: list[float]
    median: float
    projected: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class AlternativeViews:
    """Distances of the alternative components of projected students and their teacher.

    Attributes:
        projected_share: share of the differences' squared length that lies in the two dimensions.
        distances: of each projector.
    """

    projected_share: float
    distances: list[Distances]


@dataclass(frozen=True, kw_only=True)
class QueryMap:
    """Where one query looks in one image.

    Attributes:
        query: its (row, column) on the projector's grid of queries.
        weights: of the keys, a mean over the heads, (rows, columns) on the student's grid.
    """

    query: tuple[int, int]
    weights: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class ProjectorAttention:
    """Where the queries of a cross-attention projector look.

    Attributes:
        stage: "tpp" of the penultimate feature's projector, or "final".
        view: "original" or "alternative".
        heads: number of attention heads.
        query_grid: (rows, columns) of the queries, the teacher's.
        key_grid: (rows, columns) of the keys, the student's.
        entropy: mean entropy of the weights of a query and head, as a share of the entropy of equal
            weights: 1 for a query that looks everywhere alike, 0 for one that looks at one place.
        distance: mean distance of a query's place in the image to where it looks, in units of the
            image's height and width.
        distance_uniform: what that distance is for equal weights.
        maps: of each image in the picture, the maps of some queries.
    """

    stage: str
    view: str
    heads: int
    query_grid: tuple[int, int]
    key_grid: tuple[int, int]
    entropy: float
    distance: float
    distance_uniform: float
    maps: list[list[QueryMap]]


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How alike the features of student and teacher are, layer by layer.

    Attributes:
        student, teacher: the models, as the user named them.
        images: number of images.
        batch_size: number of images in the largest batch.
        student_layers, teacher_layers: names of the layers, from the first to the last.
        cka: linear CKA by student layer and teacher layer; None where a feature is constant.
    """

    student: str
    teacher: str
    images: int
    batch_size: int
    student_layers: list[str]
    teacher_layers: list[str]
    cka: list[list[float | None]]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A picture that the models do not allow.

    Attributes:
        picture: its name.
        reason: why.
    """

    picture: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The numbers of all pictures; None for a picture that was left out.

    Attributes:
        data: where the images come from.
        images: how many images were analysed.
        student, teacher: the models, as the user named them.
        device: that computed, for example "cpu".
        left_out: pictures that the models do not allow.
        frequencies: of the teacher's final feature.
        alternative_views: of the student's run and those that it is compared with.
        attention: of the run's projectors.
        similarity: of student and teacher.
    """

    data: str
    images: int
    student: str
    teacher: str
    device: str
    left_out: list[LeftOut]
    frequencies: Frequencies | None
    alternative_views: AlternativeViews | None
    attention: list[ProjectorAttention] | None
    similarity: Similarity | None
