"""Flags, exit codes and the one place where anything is printed."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from kdjax import console, files, outside
from kdjax.errors import Refused, literal, printable

EXIT_REFUSED, EXIT_INTERNAL, EXIT_IO, EXIT_INTERRUPTED = 2, 70, 74, 75
_FILES = "a .csv, .parquet, .npz, .npy or .safetensors file of logits or probabilities, one row an example"


class _Parser(argparse.ArgumentParser):
    """A wrong flag is one sentence, not a usage text."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; see {self.prog} --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0 done, 2 refused, 70 internal, 74 disk, 75 interrupted."""
    try:
        if argv is None:
            console.steady()
            _heed_signals()
        arguments = _parser().parse_args(argv)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", UserWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            lines = arguments.command(arguments)
        for warning in noted:
            if issubclass(warning.category, UserWarning):
                print(f"note: {printable(str(warning.message))}", file=sys.stderr)
        for line in "\n".join(lines).split("\n"):
            print(literal(line))
        return 0
    except Refused as error:
        return _leave(str(error), EXIT_REFUSED)
    except OSError as error:
        return _leave(str(error), EXIT_IO)
    except ImportError as error:
        reason = " ".join(str(error).split())[:300]
        return _leave(f"{error.name or 'a library'} cannot be imported here ({reason}); install it anew.", EXIT_REFUSED)
    except MemoryError:
        return _leave("there is not enough memory for this file; give fewer examples.", EXIT_REFUSED)
    except Exception:  # what nobody foresaw keeps its traceback
        traceback.print_exc()
        return EXIT_INTERNAL


def _heed_signals() -> None:
    """SIGTERM and Ctrl-C end the command in a sentence, at once: an exception from a handler would reach callbacks of
    libraries that abort on it."""

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, b"stopped: interrupted; a file is written whole or not at all, run the same command again.\n")
        for path in (*files.UNFINISHED,):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        os._exit(EXIT_INTERRUPTED)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


def _leave(sentence: str, code: int) -> int:
    if sentence:
        print(printable(sentence), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    import kdjax

    parser = _Parser(prog="kdjax", description="Is a classifier's confidence right? Audit it, calibrate it, ship it.")
    parser.add_argument("--version", action="version", version=f"kdjax {kdjax.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    audit = _command(commands, "audit", _audit, "measure how far confidence and accuracy are apart; write audit.html")
    audit.add_argument("files", nargs="+", metavar="FILE", help=_FILES + "; several files are several models")
    audit.add_argument(
        "--calibration", default="", metavar="VAL", help="also fit one temperature on this file's examples"
    )
    audit.add_argument(
        "--out", default="audit.html", metavar="PAGE", help="the page; its numbers go beside it as .json"
    )
    audit.add_argument("--bins", type=_count, default=15, help="bins of equal width of the calibration errors (15)")
    _reading(audit)

    calibrate = _command(
        commands, "calibrate", _calibrate, "fit a calibrator on held-out predictions; write it as JSON"
    )
    calibrate.add_argument("--fit", required=True, metavar="VAL", help=_FILES + ", with labels, not trained on")
    calibrate.add_argument("--test", default="", metavar="TEST", help="other examples, to measure before and after")
    calibrate.add_argument("--out", default="calibrator.json", metavar="JSON", help="where the calibrator is written")
    calibrate.add_argument("--methods", default="", metavar="A,B", help="try only these post-hoc methods")
    _import(calibrate)
    _reading(calibrate)

    apply = _command(commands, "apply", _apply, "turn predictions into calibrated probabilities")
    apply.add_argument("calibrator", metavar="CALIBRATOR", help="the JSON that `kdjax calibrate` wrote")
    apply.add_argument("file", metavar="FILE", help=_FILES)
    apply.add_argument("--out", required=True, metavar="OUT", help="a .csv, .npz, .npy, .parquet or .safetensors file")
    _import(apply)
    _reading(apply)

    compare = _command(commands, "compare", _compare, "two models on the same examples, with paired intervals")
    compare.add_argument("first", metavar="A", help=_FILES)
    compare.add_argument("second", metavar="B", help="the other model's, for the same examples in the same order")
    compare.add_argument("--bins", type=_count, default=15, help="bins of equal width of the calibration errors (15)")
    _reading(compare)

    show = _command(commands, "show", _show, "what a run is: its recipe, its numbers, its teacher and students")
    show.add_argument("run", metavar="RUN", help="a run's directory, or the workdir that holds several")
    show.add_argument(
        "--verify-with", default="", metavar="KEY.pub", help="refuse what the owner of this public key has not signed"
    )

    sign = _command(commands, "sign", _sign, "sign finished runs for those who publish them")
    sign.add_argument("runs", nargs="+", metavar="RUN", help="a finished run's directory, or a workdir of such")
    sign.add_argument("--key", required=True, metavar="KEY", help="an Ed25519 key: ssh-keygen -t ed25519 -f key")

    prepare = _command(commands, "prepare", _prepare, "download and write a public data set once, to read it offline")
    prepare.add_argument("name", metavar="NAME", help="tfds name: cifar10, cifar100, name/config, name:version")
    prepare.add_argument("--data_dir", metavar="FOLDER", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    prepare.add_argument("--cache_dir", metavar="FOLDER", help="default: $KDJAX_CACHE, else ~/.cache/kdjax")

    export = _command(
        commands, "export", _export, "a run's network as a file for others, compared with its stored logits"
    )
    export.add_argument("run", metavar="RUN", help="a finished run's directory")
    export.add_argument(
        "--format",
        default="stablehlo",
        metavar="FORMAT",
        help="stablehlo (the default), onnx, safetensors, or huggingface for a text network",
    )
    export.add_argument("--out", default="", metavar="OUT", help="model.stablehlo and so on by default")
    export.add_argument("--data", default="", metavar="PATH", help="file or folder of the run's own data set")
    _import(export)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, run: Callable, purpose: str) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
    made.set_defaults(command=run)
    return made


def _import(parser: argparse.ArgumentParser) -> None:
    help_text = "modules to import first, separated by commas, that register methods, models or data sets of your own"
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE", help=help_text)


def _reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "reading files", "what a file holds is found out and said; these flags overrule it"
    )
    group.add_argument(
        "--labels", default="", metavar="NAME", help="array or column of the labels, or a file of labels"
    )
    group.add_argument("--scores", default="", metavar="NAME", help="array of the scores, or columns such as 'p_*'")
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--probabilities",
        dest="kind",
        action="store_const",
        const="probabilities",
        default="",
        help="the scores are probabilities",
    )
    kind.add_argument("--logits", dest="kind", action="store_const", const="logits", help="the scores are logits")
    group.add_argument("--max-gb", type=_count, default=4, help="refuse files that take more memory than this (4 GiB)")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 1 to 10000")
    return int(text)


def _how(arguments: argparse.Namespace):
    from kdjax.cli.arrays import GIB
    from kdjax.cli.predictions import How

    return How(arguments.scores, arguments.labels, arguments.kind, arguments.max_gb * GIB)


def _audit(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.audit import audit

    return audit(a.files, _how(a), a.calibration, a.out, a.bins)


def _calibrate(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.calibrate import calibrate

    outside.imports(a.modules)
    return calibrate(a.fit, a.test, a.out, a.methods, _how(a))


def _apply(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.apply import apply

    outside.imports(a.modules)
    return apply(a.calibrator, a.file, a.out, _how(a))


def _show(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.show import show

    return show(a.run, a.verify_with)


def _sign(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.sign import sign

    return sign(a.runs, a.key)


def _prepare(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.prepare import prepare

    return prepare(a.name, a.data_dir, a.cache_dir)


def _export(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.export import export

    outside.imports(a.modules)
    return export(a.run, a.format, a.out, a.data)


def _compare(a: argparse.Namespace) -> list[str]:
    from kdjax.cli.compare import compare

    return compare(a.first, a.second, a.bins, _how(a))
