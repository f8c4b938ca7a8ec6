"""An analysis as text: a line or a few for each picture."""

from scalekd.analysis.results import Analysis, ProjectorAttention, Similarity

STAGES = {"tpp": "penultimate", "final": "final"}


def describe(analysis: Analysis, folder: str) -> str:
    """What each picture shows, in numbers, and what was left out."""
    lines = [
        f"{analysis.images} images of {analysis.data}; student {analysis.student}, teacher "
        f"{analysis.teacher}"
    ]
    if (frequencies := analysis.frequencies) is not None:
        height, width = frequencies.grid
        lines.append(
            f"{folder}/frequencies.png: the direct component has {frequencies.direct_energy:.1%} "
            f"of the energy of the teacher's final feature ({frequencies.channels} channels of "
            f"{height}x{width})"
        )
    if (views := analysis.alternative_views) is not None:
        lines.append(
            f"{folder}/alternative_views.png: squared distance to the teacher without the spatial "
            "mean, from 0 to 4, median over images"
        )
        lines += [
            f"  {entry.median:.3f}  {entry.run}, {STAGES[entry.stage]} projector of the "
            f"{entry.view} view"
            for entry in views.distances
        ]
    if analysis.attention is not None:
        lines.append(f"{folder}/attention.png: where the projectors' queries look")
        lines += map(_describe_attention, analysis.attention)
    if analysis.similarity is not None:
        lines.append(f"{folder}/similarity.png: {_describe_similarity(analysis.similarity)}")
    lines += [f"{left.picture}.png is left out: {left.reason}" for left in analysis.left_out]
    lines.append(f"{folder}/analysis.json: all numbers")
    return "\n".join(lines)


def _describe_attention(entry: ProjectorAttention) -> str:
    return (
        f"  {STAGES[entry.stage]} projector of the {entry.view} view: entropy {entry.entropy:.0%} "
        f"of that of equal weights; {entry.distance:.2f} of the image's side from the query's "
        f"place, {entry.distance_uniform:.2f} with equal weights"
    )


def _describe_similarity(result: Similarity) -> str:
    """The most similar teacher layer of the student's last layer, and the mean of all."""
    last = [(-1.0 if value is None else value) for value in result.cka[-1]]
    best = max(range(len(last)), key=last.__getitem__)
    return (
        f"linear CKA of the student's last layer {result.student_layers[-1]} is "
        f"{last[-1]:.2f} with the teacher's last layer {result.teacher_layers[-1]}, and highest, "
        f"{last[best]:.2f}, with {result.teacher_layers[best]}"
    )
