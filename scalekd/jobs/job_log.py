"""What a job writes to train.log besides the package's warnings: its recipe, notes and end."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scalekd.distributed import ranks
from scalekd.errors import one_line
from scalekd.notes import Note
from scalekd.recipe import RunSettings
from scalekd.runs.folder import RunFolder
from scalekd.runs.log import logging_to

logger = logging.getLogger(__name__)


@contextmanager
def job_log(folder: RunFolder, recipe: RunSettings, notes: Sequence[Note]) -> Iterator[None]:
    """Inside, the run folder's train.log gets what the package logs; see `logging_to`.

    It begins with the recipe and the preflight's notes, and ends with the error or the signal that
    ended the block, if any. Only rank 0 writes it.

    Args:
        folder: the run folder, which this process holds.
        recipe: what is trained.
        notes: the preflight's.
    """
    if ranks.rank() > 0:
        yield
        return
    with logging_to(folder.log):
        logger.info("%s: training starts with %s", folder.path, json.dumps(recipe.as_dict()))
        for note in notes:
            logger.info("%s: note (%s): %s", folder.path, note.level, note.text)
        try:
            yield
        except BaseException as error:
            kind = type(error).__name__
            logger.info("%s: training ended by %s: %s", folder.path, kind, one_line(error))
            raise
        logger.info("%s: training ended", folder.path)
