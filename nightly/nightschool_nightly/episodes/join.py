"""The join of a night, as DuckDB's SQL over the raw tables of `episode_tables`. Every query has a total order."""

from __future__ import annotations

# Spans: the first copy of each (trace, span). Where two instrumentations, one inside the other, recorded one call (one trace, and one
# response id or one the parent of the other), the inner one with content is the call; the other only names user, session and task, as
# any span of a trace may. A server's span of a call that the app saw too is matched by response id and only adds tokens and release
# to it. Outcomes: the first copy of each event; slots by last writer; targets resolved to one trace.
JOIN = (
    """CREATE TABLE spans AS SELECT * FROM raw_spans
       QUALIFY row_number() OVER (PARTITION BY trace, span ORDER BY place) = 1""",
    """CREATE TABLE again AS
       SELECT DISTINCT o.trace, CASE WHEN o.told AND NOT i.told THEN i.span ELSE o.span END AS span FROM spans o JOIN spans i
       ON i.trace = o.trace AND i.parent = o.span WHERE o.model_call AND o.side = 'app' AND i.model_call AND i.side = 'app'""",
    """UPDATE spans SET model_call = false WHERE (trace, span) IN (SELECT (trace, span) FROM again)""",
    """INSERT INTO again SELECT trace, span FROM spans WHERE model_call AND side = 'app' AND response IS NOT NULL
       QUALIFY row_number() OVER (PARTITION BY trace, response ORDER BY told DESC, started DESC, span) > 1""",
    """UPDATE spans SET model_call = false WHERE (trace, span) IN (SELECT (trace, span) FROM again)""",
    """CREATE TABLE named AS SELECT trace, arg_min(conversation, row(started, span)) AS conversation,
              arg_min(episode, row(started, span)) AS episode, arg_min(task, row(started, span)) AS task,
              arg_min(subject, row(started, span)) AS subject
       FROM spans WHERE NOT model_call AND coalesce(conversation, episode, task, subject) IS NOT NULL GROUP BY trace""",
    """CREATE TABLE app_calls AS SELECT response, min(trace) AS trace, min(span) AS span, count(*) AS copies
       FROM spans WHERE model_call AND side = 'app' AND response IS NOT NULL GROUP BY response""",
    """CREATE TABLE server_calls AS SELECT s.*, a.trace AS app_trace, a.span AS app_span
       FROM spans s LEFT JOIN app_calls a ON s.response = a.response AND a.copies = 1
       WHERE s.model_call AND s.side = 'server'
       QUALIFY row_number() OVER (PARTITION BY coalesce(s.response, s.trace || s.span) ORDER BY s.place) = 1""",
    """CREATE TABLE seen_calls AS
       SELECT c.trace, c.span, c.started, c.response, c.conversation, c.episode, c.task, c.subject, c.content,
              s.content AS server, c.new OR coalesce(s.new, false) AS new
       FROM spans c LEFT JOIN server_calls s ON s.app_trace = c.trace AND s.app_span = c.span
       WHERE c.model_call AND c.side = 'app'
       UNION ALL
       SELECT trace, span, started, response, conversation, episode, task, subject, content, content, new
       FROM server_calls WHERE app_trace IS NULL""",
    """CREATE TABLE calls AS
       SELECT c.* REPLACE (coalesce(c.conversation, n.conversation) AS conversation, coalesce(c.episode, n.episode) AS episode,
                           coalesce(c.task, n.task) AS task, coalesce(c.subject, n.subject) AS subject)
       FROM seen_calls c LEFT JOIN named n USING (trace)""",
    """CREATE TABLE events AS SELECT e.* FROM raw_events e SEMI JOIN calls c ON e.trace = c.trace AND e.span = c.span
       QUALIFY row_number() OVER (PARTITION BY e.trace, e.span, e.said_at, e.digest ORDER BY e.place) = 1""",
    """CREATE TABLE turns AS SELECT conversation, trace, row_number() OVER (PARTITION BY conversation ORDER BY first, trace) - 1 AS turn
       FROM (SELECT conversation, trace, min(started) AS first FROM calls WHERE conversation IS NOT NULL GROUP BY conversation, trace)""",
    """CREATE TABLE aliases AS
       SELECT DISTINCT 'trace_id' AS kind, trace AS target, trace, -1 AS turn FROM calls
       UNION SELECT 'response_id', response, trace, -1 FROM calls WHERE response IS NOT NULL
       UNION SELECT 'episode_id', episode, trace, -1 FROM calls WHERE episode IS NOT NULL
       UNION SELECT 'join_key', j.target, j.trace, -1 FROM raw_joins j SEMI JOIN calls c ON j.trace = c.trace
       UNION SELECT 'conversation_id', conversation, trace, -1 FROM turns
       UNION SELECT 'conversation_id', conversation, trace, turn FROM turns""",
    """CREATE TABLE outcomes AS SELECT * FROM raw_outcomes
       QUALIFY row_number() OVER (PARTITION BY event ORDER BY place) = 1""",
    """CREATE TABLE slots AS SELECT slot, kind, target, turn,
              arg_max(retracted, row(occurred, received, place)) AS retracted, max(received) AS received
       FROM outcomes GROUP BY slot, kind, target, turn""",
    """CREATE TABLE joined AS SELECT s.slot, count(DISTINCT a.trace) AS traces, min(a.trace) AS trace
       FROM slots s LEFT JOIN aliases a ON a.kind = s.kind AND a.target = s.target AND a.turn = s.turn
       GROUP BY s.slot""",
)
DROPS = """
    SELECT 'duplicate-span', (SELECT count(*) FROM raw_spans) - (SELECT count(*) FROM spans)
    UNION ALL SELECT 'call-recorded-twice', count(*) FROM again
    UNION ALL SELECT 'duplicate-event',
        (SELECT count(*) FROM raw_events e SEMI JOIN calls c ON e.trace = c.trace AND e.span = c.span) - (SELECT count(*) FROM events)
    UNION ALL SELECT 'event-without-call', count(*) FROM raw_events e ANTI JOIN calls c ON e.trace = c.trace AND e.span = c.span
    UNION ALL SELECT 'duplicate-outcome', (SELECT count(*) FROM raw_outcomes r JOIN outcomes o USING (event, said))
        - (SELECT count(*) FROM outcomes)
    UNION ALL SELECT 'event-id-used-twice', count(*) FROM raw_outcomes r JOIN outcomes o USING (event) WHERE r.said != o.said
    UNION ALL SELECT 'outcome-without-trace', count(*) FROM joined JOIN slots USING (slot) WHERE traces = 0 AND received >= $closed
    UNION ALL SELECT 'orphaned-outcome', count(*) FROM joined JOIN slots USING (slot) WHERE traces = 0 AND received < $closed
    UNION ALL SELECT 'ambiguous-outcome', count(*) FROM joined WHERE traces > 1
    UNION ALL SELECT 'retracted-outcome', count(*) FROM slots WHERE retracted
    ORDER BY 1"""
READ_CALLS = """
    SELECT trace, new, span, started, response, conversation, task, subject, content, server
    FROM calls ORDER BY trace, started, span"""
READ_EVENTS = "SELECT trace, span, new, content FROM events ORDER BY trace, span, said_at, place"
READ_TOOL_RUNS = """
    SELECT trace, span, content FROM spans WHERE tool_run AND trace IN (SELECT trace FROM calls) ORDER BY trace, started, span"""
READ_OUTCOMES = """
    SELECT j.trace, o.slot, o.new, o.content, o.received FROM joined j JOIN outcomes o USING (slot) WHERE j.traces = 1
    ORDER BY j.trace, o.slot, o.occurred, o.received, o.place"""
