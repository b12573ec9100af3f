"""Puts the help-desk example into wheels, so that `nightschool demo` works without a checkout; an editable install has it already."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class HelpdeskHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["examples/helpdesk"] = "nightschool/helpdesk"
