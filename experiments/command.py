"""What was typed: imports, a configuration with its names, flags and fields -> one `Command`.

    python -m experiments.distill --import=my_methods --config=configs/digits.py:conv_small,confidence_penalty,kd
        --config.recipe.student.epochs=5

Modules named by --import are imported first, so that what they register can be named everywhere. Then the configuration
is made of its names. Then methods and the data set chosen by a flag bring their own options and sizes, exactly as if
they had been named in the string. Then every other field that was typed is set. At last a folder of weights that a
recipe begins with brings its network and its tokenizer.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.base import choose, choose_data, roles
from experiments import loading, words
from kdjax import starts, worker_count
from kdjax.data.text import READERS
from kdjax.errors import Refused, nearest, one_of
from kdjax.launch import PATIENCE
from kdjax.recipes import Recipe
from kdjax.settings import Settings
from kdjax.source_code import REGISTERED

PLACES = ("workdir", "writer", "distributed", "distributed_timeout", "sign_with", "workers", "executor")
"""Flags that say where to and with whom; they are no part of a command's text."""
LOCAL, RAY = "local", "ray"
METHODS = ("recipe.teacher.method", "recipe.student.method", "recipe.student.distill.method")


@dataclasses.dataclass(frozen=True)
class Command:
    """An experiment as it was typed.

    Attributes:
      config: locked, with every name and field applied.
      plan: only print what would run.
      probe: time a few steps for the plan.
      teacher: the folder of a finished run that teaches, or "".
      distributed: how to join several processes, or None.
      distributed_timeout: seconds to wait for a process that has not come or is not heard from.
      workers: how many local processes share the stages: "auto" or a number.
      executor: "local" or "ray": who computes the stages.
      imports: the modules of --import.
      sign_with: a private key that signs every finished stage, or None.
      mixed_settings: put numbers that were computed under different settings into one table.
      fields: the dotted fields that flags or names set, each with the word that set it.
      text: the command without where it writes to and who else takes part.
    """

    config: ConfigDict
    plan: bool = False
    probe: bool = False
    teacher: str = ""
    distributed: str | None = None
    distributed_timeout: float = PATIENCE
    mixed_settings: bool = False
    sign_with: str | None = None
    workers: str = worker_count.AUTO
    executor: str = LOCAL
    imports: Sequence[str] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    text: str = ""


def defined() -> flags.FlagValues:
    """The flags that every experiment has, beside the configuration's fields."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "workdir", None, "Holds one directory per stage and the report; overrides config.run.workdir.", values
    )
    flags.DEFINE_bool(
        "plan", False, "Print the stages, what is done and what the rest would cost; run nothing.", values
    )
    flags.DEFINE_bool("probe", False, "With --plan: time five steps of every kind, and say how many hours.", values)
    flags.DEFINE_string("writer", None, "tensorboard or wandb: curves there too; overrides config.run.writer.", values)
    flags.DEFINE_string("teacher", "", "The folder of a finished run, here or elsewhere, that teaches.", values)
    flags.DEFINE_string(
        "distributed",
        None,
        "Join several processes: auto (Slurm, Open MPI, Kubernetes, TPU), or HOST:PORT,COUNT,INDEX.",
        values,
    )
    flags.DEFINE_bool(
        "mixed_settings",
        False,
        "Put numbers computed under different settings (XLA flags, device, threads, versions) into one table.",
        values,
    )
    flags.DEFINE_string(
        "sign_with", None, "Sign every finished stage with this Ed25519 key, for those who publish runs.", values
    )
    flags.DEFINE_string(
        "workers",
        worker_count.AUTO,
        "Local processes that share the stages, from 1 to the processors; auto: as many as pay, 1 on an accelerator.",
        values,
    )
    flags.DEFINE_string(
        "executor",
        LOCAL,
        "local, or ray: stages are tasks of a Ray cluster (RAY_ADDRESS, or this machine's), in one shared --workdir.",
        values,
    )
    flags.DEFINE_float(
        "distributed_timeout",
        PATIENCE,
        "Seconds to wait for a process that has not come or is not heard from.",
        lower_bound=1.0,
        flag_values=values,
    )
    return values


def read(argv: Sequence[str], *, default: str, workdir: str = "runs", ignored: Mapping[str, str] = {}) -> Command:
    """The command of `argv`, whose first word is the program.

    Args:
      default: the configuration where none is typed.
      workdir: where none is typed.
      ignored: dotted fields, or subtrees, that this experiment would not look at -> what to type instead.

    Raises:
      Refused: whatever is wrong with the words, in one sentence.
    """
    values = defined()
    argv = [words.underscored(word, values) for word in argv]
    modules = loading.imports(words.flag_values(argv, "import"))
    registered = len(REGISTERED)
    path, _, names = [default, *words.flag_values(argv, "config")][-1].strip().partition(":")
    module = loading.load(path)
    config = configuration(module, path, names)
    _ours(config, path, default)
    typed = {field: f"--config.{field}" for field in words.fields(argv)}
    teachers = {"teacher": "--teacher"} if words.flag_values(argv, "teacher") else {}
    named = {field: f"{name!r} in the config string" for name, field in roles(names, presets(module)) if field}
    for field, word in {**named, **typed, **teachers}.items():
        for subtree, remedy in ignored.items():
            if f"{field}.".startswith(f"{subtree}."):
                raise Refused(f"{word} would change nothing here: {remedy}.")
    with config.unlocked():
        _choices(argv, config)
        _free_options(argv, config)
        for field in typed:
            _known(field, config)
            _once(field, config, argv)
        if config.run.workdir == Settings.workdir:
            config.run.workdir = workdir
    rest = words.without(argv, "config", "import")
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=[*rest])
        left = values([*rest])
    except flags.Error as error:
        raise Refused(" ".join(str(error).split())) from error
    except (TypeError, ValueError, SyntaxError, config_flags.FlagOrderError) as error:
        raise Refused(f"a field of the configuration could not be read: {' '.join(str(error).split())}.") from error
    if len(left) > 1:
        raise Refused(f"{left[1]!r} is no flag; flags look like --config.recipe.student.epochs=5.")
    if values["probe"].value and not values["plan"].value:
        raise Refused("--probe times steps for a plan; type --plan --probe.")
    executor = one_of("--executor", str(values["executor"].value), (LOCAL, RAY))
    elsewhere = "--distributed" if values["distributed"].value else ""
    if executor == RAY and elsewhere:
        raise Refused("--executor=ray and --distributed both say which processes compute; leave one of them out.")
    elsewhere = "--executor=ray" if executor == RAY else elsewhere
    workers = worker_count.check(str(values["workers"].value), elsewhere=elsewhere)
    if workers == worker_count.AUTO and len(REGISTERED) > registered:
        workers = "1"  # what the configuration's own file registers no worker knows
    final = holder.value
    final.run.workdir = values["workdir"].value or final.run.workdir
    final.run.writer = values["writer"].value or final.run.writer
    with final.unlocked():
        _folders({**named, **typed}, final)
    return Command(
        config=final,
        plan=bool(values["plan"].value),
        probe=bool(values["probe"].value),
        teacher=str(values["teacher"].value or ""),
        distributed=values["distributed"].value,
        distributed_timeout=float(values["distributed_timeout"].value or PATIENCE),
        mixed_settings=bool(values["mixed_settings"].value),
        sign_with=values["sign_with"].value,
        workers=workers,
        executor=executor,
        imports=modules,
        fields={**named, **typed},
        text=" ".join([words.program(), *map(words.quoted, words.without(argv[1:], *PLACES))]),
    )


def configuration(module: ModuleType, path: str, names: str) -> ConfigDict:
    """`get_config(names)` of a configuration file.

    Raises:
      Refused: names that it does not know, or what it returns is no configuration of ours.
    """
    config = module.get_config(names) if names else module.get_config()
    if not isinstance(config, ConfigDict) or not {"recipe", "seeds", "run"} <= {*config}:
        raise Refused(f"get_config of {path} returned no configuration; expected what configs.base.finish returns.")
    return config


def presets(module: ModuleType) -> Mapping[str, Mapping[str, Any]]:
    """The names that a family defines for itself."""
    return getattr(module, "PRESETS", {})


def _ours(config: ConfigDict, path: str, default: str) -> None:
    """Refuses the configuration of another experiment, which lacks what this one reads."""
    ours = default.partition(":")[0]
    expected = {} if path == ours else loading.load(ours).get_config().recipe
    if missing := [name for name in expected if name not in config.recipe]:
        raise Refused(
            f"{path} has no config.recipe.{missing[0]}, which this experiment reads; is it that of another experiment? "
            f"Type --config={default}, or a configuration that has what {ours} has."
        )


def _choices(argv: Sequence[str], config: ConfigDict) -> None:
    """Methods and the data set chosen by flag, each with what its name stands for."""
    for name in words.flag_values(argv, "config.recipe.data.name")[-1:]:
        if name != config.recipe.data.name:
            choose_data(config, name)
    for field in METHODS:
        for name in words.flag_values(argv, f"config.{field}")[-1:]:
            part = config[field.removesuffix(".method")]
            if name and name != part.method:
                choose(part, name)


def _free_options(argv: Sequence[str], config: ConfigDict) -> None:
    """Makes room for typed options of a network or a data set; which there are, the network or the source says."""
    for field in words.fields(argv):
        place, _, name = field.rpartition(".")
        set_of = re.fullmatch(r"recipe\.sizes\.(\w+)(?:\.options)?\.\w+", field)
        if set_of and "sizes" in config.recipe and set_of[1] in READERS:
            part = config.recipe
            for step in place.split(".")[1:]:
                if step not in part:
                    part[step] = ConfigDict()
                part = part[step]
            if name in part:
                continue
        elif not re.fullmatch(r"recipe\.((teacher|student)\.model_options|data\.options)\.\w+", field):
            continue
        text = words.flag_values(argv, f"config.{field}")[-1]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        config[place][name] = value


def _folders(given: Mapping[str, str], config: ConfigDict) -> None:
    """A folder of weights brings its network and its tokenizer, where the command names no other."""
    for role in ("teacher", "student"):
        part, data = config.recipe[role], config.recipe.data
        if not starts.is_folder(part.init):
            continue
        if f"recipe.{role}.model" not in given:
            part.model = Recipe.model
            typed = [name for name in part.model_options if f"recipe.{role}.model_options.{name}" in given]
            part.model_options = ConfigDict({name: part.model_options[name] for name in typed})
        if data.name in READERS and not data.options.get("tokenizer"):
            data.options.tokenizer = part.init


def _once(field: str, config: ConfigDict, argv: Sequence[str]) -> None:
    """Refuses a list that is typed twice: the second would be appended to the first."""
    values, part = words.flag_values(argv, f"config.{field}"), config
    if len(values) > 1 and "[" not in field:
        for name in field.split("."):
            part = part[name]
        if isinstance(part, tuple | list):
            once = f"expected once, with all values: --config.{field}={values[-1]}"
            raise Refused(f"--config.{field} is typed {len(values)} times; {once}.")


def _known(field: str, config: ConfigDict) -> None:
    """Refuses a field that the configuration does not have."""
    part: Any = config
    owner: Any = None
    for name in re.sub(r"\[.*", "", field).split("."):
        if not isinstance(part, ConfigDict) or name not in part:
            where = f"config.{field}"
            keys = [*part] if isinstance(part, ConfigDict) else []
            if isinstance(owner, ConfigDict) and "method" in owner and part is owner.get("options"):
                method = owner.method
                hint = nearest(name, keys) if keys else "it has none."
                raise Refused(f"{where}: the method {method!r} has no option {name!r}; {hint}")
            hint = nearest(name, keys) if keys else "it holds no further fields."
            raise Refused(f"{where}: the configuration has no field {name!r}; {hint}")
        owner, part = part, part[name]
