"""`python -m nightschool_serving`: check the configuration, then become a vLLM server for every tenant's release."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nightschool.config.reader import load_config
from nightschool.errors import NightschoolError
from nightschool.machine import read_machine
from nightschool.process import become_python
from nightschool_serving.launch import (
    check_environment,
    describe_sizes,
    server_arguments,
    server_environment,
    warnings_about,
)
from nightschool_serving.options import check_extra


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Become the server; or print one line and exit with status 2 if the server must not start."""
    parser = argparse.ArgumentParser(prog="nightschool serve", description="Serve the base model and every tenant's release.")
    parser.add_argument("--config", default="nightschool.toml", metavar="FILE", help="the configuration (default: %(default)s)")
    parser.add_argument("vllm", nargs=argparse.REMAINDER, metavar="-- VLLM ARGUMENTS", help="options passed on to vLLM")
    arguments = parser.parse_args(argv)
    extra = arguments.vllm[1:] if arguments.vllm[:1] == ["--"] else arguments.vllm
    try:
        config = load_config(arguments.config)
        check_environment(os.environ)
        check_extra(extra)
        machine = read_machine()
        environment = server_environment(Path(arguments.config), config, os.environ, machine)
        command = ["-m", "nightschool_serving.server", *server_arguments(config, extra, machine)]
    except NightschoolError as error:
        print(f"nightschool serve: {error}", file=sys.stderr)
        sys.exit(2)
    for warning in warnings_about(config):
        print(f"nightschool serve: warning: {warning}", file=sys.stderr)
    where, sizes = f"http://{config.serving.host}:{config.serving.port}", describe_sizes(command, environment)
    print(f"nightschool serve: starting on {where} ({sizes})", flush=True)
    os.environ.update(environment)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # vLLM would obey it, and not [serving] kv_cache_gib
    become_python(command)


if __name__ == "__main__":
    main()
