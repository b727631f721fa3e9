"""Every failure of a command in one line, with the traceback in a file."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from seqrec.cli.errors import in_one_line
from seqrec.cli.run_config import content_of
from seqrec.data.manifest import PREPARE_AGAIN
from seqrec.files import write_text

# Messages of torch and of the system about memory.
MEMORY = r"\bout of memory\b|can't allocate memory"
PACKAGE = Path(__file__).resolve().parents[1]
_BUGS = (AssertionError, AttributeError, IndexError, KeyError, NameError, RecursionError, TypeError, ZeroDivisionError)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS, *_FULL, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}


def line_and_status(error: BaseException, words: Sequence[str] = ()) -> tuple[str, int]:
    """Return what a user should read of an exception, and the exit status: 2 for input, 1 for all other failures.

    Args:
        error: The exception.
        words: Arguments of the command, of which the one that named a forbidden place is named.
    """
    known = in_one_line(error)
    if known is not None:
        line, refused = " ".join(known.split()), _refused_by_system(error)
        if refused is not None and str(refused.strerror).lower() in line.lower() and "choose another" not in line:
            option = argument_of(Path(refused.filename or line.split()[0]), words) or "place"
            line = f"{line.removesuffix('.')}; {_remedy(refused)}choose another {option}"
        line = line.replace(PREPARE_AGAIN, prepare_again(words))
        return re.sub(r"\bstore=FOLDER", "--store FOLDER", line), 2
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 300 else text[:297] + "..."
    if isinstance(error, MemoryError):
        text = f"memory ran out ({text}); lower --data.batch_size or --data.memory_limit, or use a larger machine"
    elif isinstance(error, OSError) and error.errno in _WRITING:
        where = Path(error.filename or ".")
        verb = "read" if os.path.exists(where) and not os.access(where, os.R_OK) else "written"
        above = next(each for each in where.absolute().parents if os.path.exists(each))
        verb = verb if verb == "read" or os.access(above, os.X_OK) or os.path.isfile(above) else "reached"
        option = argument_of(where, words)
        text = f"{where} cannot be {verb}: {error.strerror}; {_remedy(error)}choose another {option or 'folder'}"
        if option and error.errno not in _FULL:
            return text, 2
    elif is_ours(error):
        bug = f"seqrec failed with {type(error).__name__}: {text}. This is a bug; please report it with"
        return f"{bug} {_keep_traceback(error)}", 1
    else:
        hint = "; lower --data.batch_size or --data.max_length" if re.search(MEMORY, text, re.IGNORECASE) else ""
        text = f"{type(error).__name__}: {text}" if isinstance(error, _BUGS) else f"{text}{hint}"
    return f"{text} (traceback: {_keep_traceback(error)})", 1


def prepare_again(words: Sequence[str]) -> str:
    """Return the command that prepares the store of a command again, from that command's arguments."""
    command, given = " ".join(words[:1]), list(itertools.pairwise([*words, ""]))
    pairs = [(word.partition("=")[0], word.partition("=")[2] or value) for word, value in given if word[:1] == "-"]
    of_run = command not in ("recommend", "serve", "export", "inspect") or any(key[:7] == "--data." for key, _ in pairs)
    names = {"--ckpt": "--ckpt", "--ckpt_path": "--ckpt", "--store": "--data.store"}
    names |= {"--config": "--config", "-c": "--config"} if of_run else {}
    kept = [(names.get(key, key), value) for key, value in pairs if key in names or key.startswith("--data.")]
    if command == "inspect":
        kept.append(("--data.store", next((word for word in words[1:] if word[:1] != "-"), "FOLDER")))
    if not any(key in ("--ckpt", "--config", "--data.source") for key, _ in kept):
        kept.insert(0, ("--config", "FILE"))
    return shlex.join(["seqrec", "prepare", *itertools.chain.from_iterable(kept), "--overwrite", "true"])


def argument_of(path: Path, words: Sequence[str]) -> str:
    """Return the option, of a command's arguments and their configs, that names a path or a folder above it."""
    given = [(word, value) for word, value in itertools.pairwise(words) if word.startswith("--")]
    given += [(option, value) for option, _, value in (word.partition("=") for word in words) if value]
    for config in [value for option, value in given if option == "--config"]:
        given += _texts(content_of(config), "-")
    store = "--store" if words[:1] and words[0] in ("recommend", "export", "serve", "inspect") else "--data.store"
    given += [("--trainer.default_root_dir", "runs"), (store, "stores")]
    place, found = path.absolute(), ("", Path())
    for option, value in given:
        named = Path(value).absolute()
        if not os.path.isdir(place) and place in named.parents:
            return option
        # Results are collected next to their place, under a name that contains its own.
        beside = named.parent == place.parent and place.name.startswith((f".{named.name}-", f"{named.name}."))
        if beside or named in (place, *place.parents):
            found = max(found, (option, named), key=lambda each: len(str(each[1])))
    return found[0]


def _texts(content: object, key: str) -> list[tuple[str, str]]:
    """Return the texts in a config, with their options."""
    if isinstance(content, dict):
        inner = ((value, key if name == "init_args" else f"{key}.{name}") for name, value in content.items())
        return [each for value, name in inner for each in _texts(value, name.replace("-.", "--", 1))]
    return [(key, content)] if isinstance(content, str) and not key.endswith("class_path") else []


def _remedy(error: OSError) -> str:
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return "make room, or " if error.errno in _FULL else "allow it, or " if denied else ""


def _refused_by_system(error: BaseException | None) -> OSError | None:
    """Return the first error of the system about a place that led to an exception; None if another error did."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _WRITING):
        error = error.__cause__
    return error


def is_ours(error: BaseException) -> bool:
    """Return whether a file of this package raised an error of programming."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, _BUGS) and bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE)


def _keep_traceback(error: BaseException) -> str:
    """Write the traceback into the run's folder if the run has one, else into a temporary file, and return where."""
    text = "".join(traceback.format_exception(error))
    folder = getattr(error, "run_folder", None)
    try:
        if folder is not None and os.access(folder, os.W_OK):
            file = Path(folder) / "traceback.txt"
        else:
            descriptor, name = tempfile.mkstemp(prefix="seqrec-traceback-", suffix=".txt")
            os.close(descriptor)
            file = Path(name)
        write_text(file, text, mode=0o600)
    except OSError:
        return "by --debug"
    return str(file)
