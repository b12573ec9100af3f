"""The join of a night: SQL that makes calls, events and outcomes of traces out of the raw tables.

Every query that chooses one of several rows has a total order, so that the same records give the same episodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import duckdb

from nightschool_nightly.episodes.reasons import DropReason

# In the order in which they run; each table is made from those above it.
_JOIN = (
    # One row a span: the first copy that was read.
    """CREATE TABLE spans AS SELECT * FROM raw_spans
       QUALIFY row_number() OVER (PARTITION BY trace, span ORDER BY read_order) = 1""",
    # Model calls that another span of the trace records as well: two instrumentations, one inside the other, saw the
    # same call. The inner span is the call, unless only the outer one has content; the other one is no model call any
    # more and only names user, session and task, as any span may. First the pairs where one span is the parent of the
    # other ...
    """CREATE TABLE repeated_calls AS
       SELECT DISTINCT o.trace, CASE WHEN o.has_content AND NOT i.has_content THEN i.span ELSE o.span END AS span
       FROM spans o JOIN spans i ON i.trace = o.trace AND i.parent = o.span
       WHERE o.is_model_call AND o.side = 'app' AND i.is_model_call AND i.side = 'app'""",
    """UPDATE spans SET is_model_call = false WHERE (trace, span) IN (SELECT (trace, span) FROM repeated_calls)""",
    # ... then, of those that are left, calls with the same response id: one with content is the call, the last to start
    # of them.
    """INSERT INTO repeated_calls SELECT trace, span FROM spans WHERE is_model_call AND side = 'app' AND response IS NOT NULL
       QUALIFY row_number() OVER (PARTITION BY trace, response ORDER BY has_content DESC, started_ns DESC, span) > 1""",
    """UPDATE spans SET is_model_call = false WHERE (trace, span) IN (SELECT (trace, span) FROM repeated_calls)""",
    # One row a trace: what its spans that are no model call say of it, each value from the first span that has it.
    """CREATE TABLE trace_labels AS SELECT trace, arg_min(conversation, row(started_ns, span)) AS conversation,
              arg_min(episode, row(started_ns, span)) AS episode, arg_min(task, row(started_ns, span)) AS task,
              arg_min(subject, row(started_ns, span)) AS subject
       FROM spans WHERE NOT is_model_call AND coalesce(conversation, episode, task, subject) IS NOT NULL GROUP BY trace""",
    # One row a response id: the call of an app that names it, and how many do.
    """CREATE TABLE app_calls AS SELECT response, min(trace) AS trace, min(span) AS span, count(*) AS copies
       FROM spans WHERE is_model_call AND side = 'app' AND response IS NOT NULL GROUP BY response""",
    # One row a call that a server saw, with the app's span of the same call. A response id that two app calls claim
    # joins neither: one of them is mistaken, and nothing says which.
    """CREATE TABLE server_calls AS SELECT s.*, a.trace AS app_trace, a.span AS app_span
       FROM spans s LEFT JOIN app_calls a ON s.response = a.response AND a.copies = 1
       WHERE s.is_model_call AND s.side = 'server'
       QUALIFY row_number() OVER (PARTITION BY coalesce(s.response, s.trace || s.span) ORDER BY s.read_order) = 1""",
    # One row a call, whoever saw it. The server only adds tokens and release to what the app saw; a call that no app
    # saw is the server's own, content included.
    """CREATE TABLE matched_calls AS
       SELECT c.trace, c.span, c.started_ns, c.response, c.conversation, c.episode, c.task, c.subject, c.content,
              s.content AS server_content, c.is_new OR coalesce(s.is_new, false) AS is_new
       FROM spans c LEFT JOIN server_calls s ON s.app_trace = c.trace AND s.app_span = c.span
       WHERE c.is_model_call AND c.side = 'app'
       UNION ALL
       SELECT trace, span, started_ns, response, conversation, episode, task, subject, content, content, is_new
       FROM server_calls WHERE app_trace IS NULL""",
    # The same calls; what one leaves unsaid of conversation, episode, task and user is what its trace says.
    """CREATE TABLE calls AS
       SELECT c.* REPLACE (coalesce(c.conversation, l.conversation) AS conversation, coalesce(c.episode, l.episode) AS episode,
                           coalesce(c.task, l.task) AS task, coalesce(c.subject, l.subject) AS subject)
       FROM matched_calls c LEFT JOIN trace_labels l USING (trace)""",
    # One row a message event of a call: the first copy.
    """CREATE TABLE events AS SELECT e.* FROM raw_events e SEMI JOIN calls c ON e.trace = c.trace AND e.span = c.span
       QUALIFY row_number() OVER (PARTITION BY e.trace, e.span, e.at_ns, e.fingerprint ORDER BY e.read_order) = 1""",
    # One row a conversation and trace: which turn of the conversation the trace is, from 0.
    """CREATE TABLE turns AS SELECT conversation, trace, row_number() OVER (PARTITION BY conversation ORDER BY first_ns, trace) - 1 AS turn
       FROM (SELECT conversation, trace, min(started_ns) AS first_ns FROM calls WHERE conversation IS NOT NULL
             GROUP BY conversation, trace)""",
    # Every way in which an outcome can name a trace. A trace may have many, and one may be that of many traces.
    """CREATE TABLE trace_names AS
       SELECT DISTINCT 'trace_id' AS target_kind, trace AS target, trace, -1 AS turn FROM calls
       UNION SELECT 'response_id', response, trace, -1 FROM calls WHERE response IS NOT NULL
       UNION SELECT 'episode_id', episode, trace, -1 FROM calls WHERE episode IS NOT NULL
       UNION SELECT 'join_key', k.join_key, k.trace, -1 FROM raw_join_keys k SEMI JOIN calls c ON k.trace = c.trace
       UNION SELECT 'conversation_id', conversation, trace, -1 FROM turns
       UNION SELECT 'conversation_id', conversation, trace, turn FROM turns""",
    # One row an outcome record: the first with its event id.
    """CREATE TABLE outcomes AS SELECT * FROM raw_outcomes
       QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY read_order) = 1""",
    # One row a slot (target, name and source of outcomes): whether its last record took back what the slot held.
    """CREATE TABLE slots AS SELECT slot, target_kind, target, turn,
              arg_max(retracts, row(occurred_ns, received_ns, read_order)) AS is_retracted, max(received_ns) AS received_ns,
              bool_or(is_new) AS is_new
       FROM outcomes GROUP BY slot, target_kind, target, turn""",
    # One row a slot: how many traces have the name that its outcomes give, and the trace where it is one.
    """CREATE TABLE slot_traces AS SELECT s.slot, count(DISTINCT n.trace) AS num_traces, min(n.trace) AS trace
       FROM slots s LEFT JOIN trace_names n ON n.target_kind = s.target_kind AND n.target = s.target AND n.turn = s.turn
       GROUP BY s.slot""",
)
# What the join left out of tonight's records: a query of one number for each reason. A copy is new or not by itself; a
# slot is new when any record of it is. An outcome becomes an orphan by waiting, so it counts in the night that sees it so.
_COUNTS = {
    DropReason.DUPLICATE_SPAN: """
        SELECT (SELECT count(*) FROM raw_spans WHERE is_new) - (SELECT count(*) FROM spans WHERE is_new)""",
    DropReason.CALL_RECORDED_TWICE: "SELECT count(*) FROM repeated_calls JOIN spans USING (trace, span) WHERE is_new",
    DropReason.DUPLICATE_EVENT: """
        SELECT (SELECT count(*) FROM raw_events e SEMI JOIN calls c ON e.trace = c.trace AND e.span = c.span WHERE e.is_new)
               - (SELECT count(*) FROM events WHERE is_new)""",
    DropReason.EVENT_WITHOUT_CALL: """
        SELECT count(*) FROM raw_events e ANTI JOIN calls c ON e.trace = c.trace AND e.span = c.span WHERE e.is_new""",
    DropReason.DUPLICATE_OUTCOME: """
        SELECT (SELECT count(*) FROM raw_outcomes r JOIN outcomes o USING (event_id, fingerprint) WHERE r.is_new)
               - (SELECT count(*) FROM outcomes WHERE is_new)""",
    DropReason.EVENT_ID_USED_TWICE: """
        SELECT count(*) FROM raw_outcomes r JOIN outcomes o USING (event_id) WHERE r.fingerprint != o.fingerprint AND r.is_new""",
    DropReason.OUTCOME_WITHOUT_TRACE: """
        SELECT count(*) FROM slot_traces JOIN slots USING (slot) WHERE num_traces = 0 AND received_ns >= $closed_ns AND is_new""",
    DropReason.ORPHANED_OUTCOME: """
        SELECT count(*) FROM slot_traces JOIN slots USING (slot)
        WHERE num_traces = 0 AND received_ns < $closed_ns AND (is_new OR received_ns >= $closed_before_ns)""",
    DropReason.AMBIGUOUS_OUTCOME: "SELECT count(*) FROM slot_traces JOIN slots USING (slot) WHERE num_traces > 1 AND is_new",
    DropReason.RETRACTED_OUTCOME: "SELECT count(*) FROM slots WHERE is_retracted AND is_new",
}


def join(db: duckdb.DuckDBPyConnection, *, closed_ns: int, closed_before_ns: int = 0) -> dict[DropReason, int]:
    """Join the raw tables; how much was left out, by reason.

    An outcome that was received before `closed_ns` is not waiting for its trace any more: it is an orphan. One that was
    received before `closed_before_ns` was one already in the last night.
    """
    for statement in _JOIN:
        db.execute(statement)
    times = {"closed_ns": closed_ns, "closed_before_ns": closed_before_ns}
    return {reason: _number(db, query, times) for reason, query in _COUNTS.items()}


def _number(db: duckdb.DuckDBPyConnection, query: str, times: Mapping[str, int]) -> int:
    used = {name: time for name, time in times.items() if f"${name}" in query}
    (number,) = db.execute(query, used or None).fetchall()[0]
    return int(number)
