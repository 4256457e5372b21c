"""``mis-lab sae``: export an SAE from a run, import one of another library, push to a hub, pull from it."""

from __future__ import annotations

import argparse
from pathlib import Path

from mis_lab.core.errors import EXIT_OK, ConfigError
from mis_lab.terminal import say

FORMATS = ("mis_lab", "saelens", "overcomplete", "thesis")
PRECISIONS = ("float32", "float16")


def sae(argv: list[str]) -> int:
    """``mis-lab sae export | import | push | pull``."""
    parser = argparse.ArgumentParser(prog="mis-lab sae", description="share sparse autoencoders")
    actions = parser.add_subparsers(dest="action", required=True)
    for add in (_add_export, _add_import, _add_push, _add_pull):
        add(actions)
    arguments = parser.parse_args(argv)
    written: list[Path] = arguments.act(arguments)
    for folder in written:
        say(str(folder))
    return EXIT_OK


def _add_export(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("export", help="write the SAEs of a finished run, each with a model card")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("folder", type=Path, help="gets a folder for each site")
    parser.add_argument("--site", action="append", default=[], help="only this one (may be repeated)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the stored matrices")
    parser.add_argument("--licence", default="unknown", help="for the cards, for instance apache-2.0")
    parser.add_argument("--store", type=Path, default=None, help="the run's store, if it moved")
    parser.set_defaults(act=_export)


def _export(arguments: argparse.Namespace) -> list[Path]:
    from mis_lab.sae.share.export import SharedPrecision, export

    return export(
        arguments.run_dir,
        arguments.folder,
        arguments.site,
        SharedPrecision[arguments.precision],
        arguments.licence,
        arguments.store,
    )


def _add_import(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("import", help="turn an SAE of another library into one of mis_lab")
    parser.add_argument("source", type=Path, help="file or folder")
    parser.add_argument("folder", type=Path, help="gets the SAE")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--site", default="", help="path of the module it belongs to")
    parser.add_argument("--run", type=Path, default=None, metavar="RUN_DIR", help="a run that knows that site")
    parser.add_argument("--store", type=Path, default=None, help="that run's store, if it moved")
    parser.add_argument("--width", type=int, default=0, help="of the site, without a run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="what the format does not say (repeatable)"
    )
    parser.add_argument("--licence", default="unknown", help="for the card")
    parser.set_defaults(act=_import)


def _import(arguments: argparse.Namespace) -> list[Path]:
    settings = {}
    for word in arguments.set:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word}", fix="Write --set NAME=VALUE.")
        settings[name] = value
    from mis_lab.sae.share.adopt import adopt
    from mis_lab.sae.share.provenance import FinishedRun

    return [
        adopt(
            arguments.source,
            arguments.folder,
            arguments.format,
            arguments.site,
            FinishedRun(arguments.run, arguments.store) if arguments.run else None,
            arguments.width,
            settings,
            arguments.licence,
        )
    ]


def _add_push(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("push", help="upload a folder of SAEs to a hub")
    parser.add_argument("folder", type=Path)
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="if the repository is made now")
    parser.add_argument("--message", default="Sparse autoencoders", help="of the commit")
    parser.set_defaults(act=_push)


def _push(arguments: argparse.Namespace) -> list[Path]:
    from mis_lab.sae.share.hub import push

    say(str(push(arguments.folder, arguments.repository, arguments.private, arguments.message)))
    return []


def _add_pull(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("pull", help="download the SAEs of a repository")
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--site", default="", help="only this one")
    parser.add_argument("--revision", default=None, help="branch, tag or commit")
    parser.set_defaults(act=_pull)


def _pull(arguments: argparse.Namespace) -> list[Path]:
    from mis_lab.sae.share.hub import pull

    return pull(arguments.repository, arguments.folder, arguments.site, arguments.revision)
