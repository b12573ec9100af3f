/* nightschool: a page says how useful an answer was.
 *
 *   <script src="https://COLLECTOR/outcome.js"></script>
 *   nightschool.outcome(token, "thumb", true)            // a promise of {event_id, status}
 *   nightschool.outcome(token, "thumb", false)           // a change of mind: the newest counts
 *   nightschool.outcome(token, "thumb", null, {op: "retract"})
 *   nightschool.outcome(token, "edit", "their own text", {edit: true})
 *
 * The app makes a token (outcome_token) for each answer. What cannot be sent is tried again, and given to the browser
 * (sendBeacon) when the user leaves the page; its copies have one event id and count once.
 */
(function (root) {
  "use strict";
  var script = document.currentScript;
  var endpoint = script ? new URL("/v1/outcomes/browser", script.src).href : "";
  var waits = [500, 2000, 8000, 30000]; // ms before each try
  var pending = new Map(); // event id -> body, until answered

  function newId() {
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), function (b) {
      return (b + 256).toString(16).slice(1);
    }).join("");
  }

  function later(ms) {
    return new Promise(function (done) { setTimeout(done, ms); });
  }

  async function send(id, body, attempt) {
    var response = null;
    try {
      // text/plain needs no preflight; keepalive lets it outlive the page
      response = await fetch(api.endpoint, {
        method: "POST", body: body, keepalive: body.length < 20000, credentials: "omit",
        headers: { "Content-Type": "text/plain;charset=UTF-8" },
      });
    } catch (error) { /* no network, or no answer that we may read */ }
    if (response && response.status < 500 && response.status !== 429) {
      pending.delete(id);
      var answer = await response.json();
      if (response.ok) return answer;
      throw new Error("nightschool: " + response.status + " " + answer.error);
    }
    if (attempt >= waits.length) {
      pending.delete(id);
      throw new Error("nightschool: not sent, " + (response ? response.status : "no connection"));
    }
    await later(waits[attempt]);
    return send(id, body, attempt + 1);
  }

  async function outcome(token, name, value, options) {
    var o = options || {};
    var record = { token: token, name: name, op: o.op || "set", event_id: o.eventId || newId(), occurred_at: Date.now() };
    if (o.edit) record.edit = { final_text: value };
    else if (record.op === "set") record.value = value;
    if (o.comment) record.comment = o.comment;
    if (o.about) record.about = o.about;
    var body = JSON.stringify(record);
    pending.set(record.event_id, body);
    return send(record.event_id, body, 0);
  }

  function hand() {
    pending.forEach(function (body) { navigator.sendBeacon(api.endpoint, body); });
  }
  addEventListener("pagehide", hand);
  addEventListener("visibilitychange", function () { if (document.hidden) hand(); });

  var api = { endpoint: endpoint, outcome: outcome };
  root.nightschool = Object.assign(root.nightschool || {}, api);
  api = root.nightschool;
})(window);
