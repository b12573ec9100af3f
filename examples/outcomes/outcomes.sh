#!/usr/bin/env bash
# Outcomes with nothing but curl. Needs a running collector (nightschool collect) and a tenant's key:
#   COLLECTOR=http://127.0.0.1:4318 NIGHTSCHOOL_API_KEY=ns-... examples/outcomes/outcomes.sh
set -euo pipefail
: "${COLLECTOR:=http://127.0.0.1:4318}" "${NIGHTSCHOOL_API_KEY:?the API key of the tenant}"

send() {
  curl -sS --fail-with-body "$COLLECTOR/v1/outcomes" \
    -H "Authorization: Bearer $NIGHTSCHOOL_API_KEY" -H "Content-Type: application/json" "${@:2}" -d "$1"
  echo
}

echo "A thumb for the answer with this id; sent again it counts once"
send '{"event_id": "e-1", "target": {"response_id": "chatcmpl-123"}, "name": "thumb", "value": true, "source": {"kind": "human", "id": "mia"}}'
send '{"event_id": "e-1", "target": {"response_id": "chatcmpl-123"}, "name": "thumb", "value": true, "source": {"kind": "human", "id": "mia"}}'

echo "Mia changes her mind, then takes it back"
send '{"event_id": "e-2", "target": {"response_id": "chatcmpl-123"}, "name": "thumb", "value": false, "source": {"kind": "human", "id": "mia"}}'
send '{"event_id": "e-3", "target": {"response_id": "chatcmpl-123"}, "name": "thumb", "op": "retract", "source": {"kind": "human", "id": "mia"}}'

echo "The text an agent sent in the end, and the hash of the draft it was made from"
send '{"target": {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}, "name": "edit",
       "edit": {"final_text": "Dear Mia, ...", "original_sha256": "'"$(printf 'Hi Mia, ...' | sha256sum | cut -d' ' -f1)"'"},
       "source": {"kind": "human", "id": "agent-9"}}'

echo "What an agent answered without using the model's answer"
send '{"target": {"conversation_id": "c-17", "turn": 2}, "name": "reply", "demonstration": {"final_text": "Please call us."},
       "source": {"kind": "human", "id": "agent-9"}}'

echo "A ticket system that knows only tickets; the event id is in a header"
send '{"target": {"join_key": {"ns": "ticket", "id": "T-42"}}, "name": "resolved", "value": true, "occurred_at": 1769860800,
       "source": {"kind": "system", "id": "tickets"}}' -H "Idempotency-Key: ticket-T-42-closed"

echo "Several at once: each has its own status"
send '{"outcomes": [
        {"target": {"episode_id": "order-7"}, "name": "conversion", "value": 49.9, "source": {"kind": "code", "id": "shop"}},
        {"target": {"episode_id": "order-8"}, "name": "conversion", "source": {"kind": "code", "id": "shop"}}]}'
