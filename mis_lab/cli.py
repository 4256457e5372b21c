"""The command ``mis-lab``: a first word without ``=`` and without a leading ``-`` is a subcommand, the rest is Hydra.

Nothing here imports torch until a run starts, so that help, ``--cfg`` and shell completion answer at once. Exit codes:
0 ok, 1 a job failed, 2 user error, 130 Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mis_lab import config as schema
from mis_lab.core.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, MisLabError
from mis_lab.core.logging import quiet_libraries

logger = logging.getLogger("mis_lab")
TERMINATED = 128 + signal.SIGTERM


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a subcommand or a Hydra job and exit with its code."""
    argv = sys.argv[1:] if argv is None else argv
    # Threads that wait for work sleep: on a shared machine spinning ones make a run several times as long. OpenMP reads
    # this when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(
        signal.SIGTERM, _terminate
    )  # a cluster's preemption unwinds like Ctrl-C: locks freed, nothing half-written
    try:
        if argv and "=" not in argv[0] and not argv[0].startswith("-"):
            from mis_lab.commands import run_command

            code = run_command(argv)
        else:
            code = run_hydra(argv)
    except KeyboardInterrupt:
        _say("interrupted; finished artifacts are kept, the same command goes on from there")
        code = EXIT_INTERRUPTED
    except MisLabError as error:
        _say(str(error))
        code = error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        _say(" ".join(_innermost(error).split()))
        code = EXIT_USER_ERROR
    except BrokenPipeError:  # the reader of our output (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    sys.exit(code)


def run_hydra(arguments: list[str]) -> int:
    """Compose the configuration and run one job or a sweep of them."""
    _failed_jobs.clear()
    full_errors = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands exceptions over instead of printing them and leaving
    sys.argv = ["mis-lab", *arguments]
    schema.register()
    entry = hydra.main(version_base="1.3", config_path=str(schema.conf_dir()), config_name="config")(job)
    try:
        entry()
    except Exception as error:
        if full_errors:
            traceback.print_exc()
        if not _failed_jobs:
            raise  # nothing ran: the configuration itself does not compose
        told = "" if isinstance(error, MisLabError) else f" (the first: {type(error).__name__}: {error})"
        _say(
            f"{len(_failed_jobs)} of the sweep's jobs failed{told}; "
            "each job's log says why, the same command does what is missing"
        )
        return EXIT_FAILED
    return EXIT_OK


_failed_jobs: list[str] = []


def job(config: DictConfig) -> float | None:
    """One run: validate, run the stages, close. Returns the run's headline number for sweepers that optimise."""
    quiet_libraries()
    settings = HydraConfig.get()
    try:
        run_config = schema.validate(config)
        from mis_lab.pipeline.run import run

        return run(
            run_config,
            run_dir=settings.runtime.output_dir,
            run_key=schema.run_key(config),
            overrides=list(settings.overrides.task),
            resolved=cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True, enum_to_str=True)),
        )
    except Exception as error:
        if isinstance(error, MisLabError):
            logger.error("%s", error)
        else:
            logger.exception("the job failed: %s", error)
        # Hydra keeps the exception until the sweep ends; without this its frames keep every tensor of the job alive.
        traceback.clear_frames(error.__traceback__)
        if settings.mode == RunMode.MULTIRUN:
            _failed_jobs.append(settings.runtime.output_dir)
            raise
        sys.exit(error.exit_code if isinstance(error, MisLabError) else EXIT_FAILED)


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


def _innermost(error: BaseException) -> str:
    """The message nearest the cause: Hydra wraps a schema's complaint in one that only names a file."""
    messages = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        messages.append(str(error))
    return ": ".join(dict.fromkeys(message for message in messages if message))


def _say(line: str) -> None:
    sys.stderr.write(f"mis-lab: {line}\n")
