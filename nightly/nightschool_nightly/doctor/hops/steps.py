"""The steps of an examination: every hop in order, how it is checked and which hops it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nightschool_nightly.doctor.findings import Hop, Passed
from nightschool_nightly.doctor.hops.app import check_acknowledgement, check_content, check_record, send_marked_request
from nightschool_nightly.doctor.hops.clocks import check_clocks
from nightschool_nightly.doctor.hops.collector import check_authentication, check_collector, check_stream
from nightschool_nightly.doctor.hops.configuration import check_configuration, check_key
from nightschool_nightly.doctor.hops.episode import build_episode, check_join, check_outcome_join, check_selection
from nightschool_nightly.doctor.hops.outcome import check_outcome_record, send_outcome
from nightschool_nightly.doctor.hops.serving import check_release, check_server_span, check_serving, check_tokens
from nightschool_nightly.doctor.visit import Visit


@dataclass(frozen=True, slots=True)
class Step:
    """How a hop is checked, and which hops must be well for that."""

    hop: Hop
    check: Callable[[Visit], Passed]
    needs: tuple[Hop, ...] = ()


STEPS = (
    Step(Hop.CONFIGURATION, check_configuration),
    Step(Hop.KEY, check_key, (Hop.CONFIGURATION,)),
    Step(Hop.COLLECTOR, check_collector, (Hop.CONFIGURATION,)),
    Step(Hop.AUTHENTICATION, check_authentication, (Hop.KEY, Hop.COLLECTOR)),
    Step(Hop.STREAM, check_stream, (Hop.CONFIGURATION,)),
    Step(Hop.TRACER, send_marked_request, (Hop.KEY,)),
    Step(Hop.ACKNOWLEDGEMENT, check_acknowledgement, (Hop.TRACER, Hop.AUTHENTICATION)),
    Step(Hop.RECORD, check_record, (Hop.ACKNOWLEDGEMENT, Hop.STREAM)),
    Step(Hop.CONTENT, check_content, (Hop.RECORD,)),
    Step(Hop.SERVING, check_serving, (Hop.TRACER,)),
    Step(Hop.RELEASE, check_release, (Hop.SERVING,)),
    Step(Hop.SERVER_SPAN, check_server_span, (Hop.SERVING, Hop.RECORD)),
    Step(Hop.TOKENS, check_tokens, (Hop.SERVER_SPAN,)),
    Step(Hop.OUTCOME, send_outcome, (Hop.ACKNOWLEDGEMENT,)),
    Step(Hop.OUTCOME_RECORD, check_outcome_record, (Hop.OUTCOME, Hop.STREAM)),
    Step(Hop.EPISODE, build_episode, (Hop.CONTENT,)),
    Step(Hop.JOIN, check_join, (Hop.EPISODE, Hop.TOKENS)),
    Step(Hop.OUTCOME_JOIN, check_outcome_join, (Hop.EPISODE, Hop.OUTCOME_RECORD)),
    Step(Hop.SELECTION, check_selection, (Hop.JOIN, Hop.OUTCOME_JOIN)),
    Step(Hop.CLOCKS, check_clocks, (Hop.RECORD,)),
)
"""Every hop, in the order in which a request travels."""
