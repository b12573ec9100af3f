"""`nightschool key`: makes an API key for a tenant."""

from __future__ import annotations

import argparse

from nightschool.keys import hash_key, new_key

SUMMARY = "make an API key for a tenant; only its SHA-256 goes into nightschool.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", required=True, help="the tenant whose key it is")


def run(arguments: argparse.Namespace) -> int:
    key = new_key(arguments.tenant)
    print(f"key, shown once, for the app:      {key}\nfor [tenants.{arguments.tenant}] key_sha256: {hash_key(key)}")
    return 0
