begin;
-- Without foreign keys and triggers, but for those that are enabled always.
set local session_replication_role = replica;
delete from pgrecall.settings;
insert into pgrecall.deliveries ("id", "recall_id", "session_id", "url", "payload", "status", "attempt", "next_at", "created_at", "ended_at", "response_status", "last_error")
values
    ('2', 'deleted', 'deleted', 'http://localhost:9/replies', '{"data": {"reply": "Gone.", "run_id": 2, "attempt": 1, "user_id": "ann", "metadata": {"n": 1}, "call_type": "once", "recall_id": "deleted", "message_id": "recall:deleted:2029-12-31T12:00:00.000000Z", "nominal_at": "2029-12-31T12:00:00.000000Z", "session_id": "deleted", "started_at": "2029-12-31T12:00:00.000000Z", "finished_at": "2029-12-31T12:00:00.000000Z", "user_message": "go on"}, "type": "recall.replied", "timestamp": "2029-12-31T12:00:00.000000Z"}', 'delivered', '1', NULL, '2029-12-31 12:00:00+00', '2029-12-31 15:00:00+00', '204', NULL),
    ('4', 'fired', 'fired', 'http://localhost:9/replies', '{"data": {"reply": "Done.", "run_id": 4, "attempt": 1, "user_id": "ann", "metadata": {"n": 1}, "call_type": "once", "recall_id": "fired", "message_id": "recall:fired:2029-12-31T12:00:00.000000Z", "nominal_at": "2029-12-31T12:00:00.000000Z", "session_id": "fired", "started_at": "2029-12-31T12:00:00.000000Z", "finished_at": "2029-12-31T12:00:00.000000Z", "user_message": "go on"}, "type": "recall.replied", "timestamp": "2029-12-31T12:00:00.000000Z"}', 'failed', '1', NULL, '2029-12-31 12:00:00+00', '2029-12-31 15:00:00+00', '410', 'gone'),
    ('7', 'missed', 'missed', 'http://localhost:9/replies', '{"data": {"reply": "Late.", "run_id": 7, "attempt": 1, "user_id": "ann", "metadata": {}, "call_type": "recurring", "recall_id": "missed", "message_id": "recall:missed:2029-12-31T12:00:00.000000Z", "nominal_at": "2029-12-31T12:00:00.000000Z", "session_id": "missed", "started_at": "2029-12-31T12:00:00.000000Z", "finished_at": "2029-12-31T15:00:00.000000Z", "user_message": "go on"}, "type": "recall.replied", "timestamp": "2029-12-31T15:00:00.000000Z"}', 'pending', '1', '2029-12-31 15:01:00+00', '2029-12-31 15:00:00+00', NULL, NULL, NULL);
insert into pgrecall.recall_runs ("id", "recall_id", "session_id", "nominal_at", "started_at", "finished_at", "worker_id", "attempt", "outcome", "reason", "reply", "error", "usage", "deferrals", "defer_reason", "occurrences", "refused_at")
values
    ('1', 'skipped', 'skipped', '2029-12-31 13:00:00+00', NULL, '2029-12-31 12:00:00+00', NULL, '0', 'skipped', 'skipped by request', NULL, NULL, NULL, '0', NULL, '1', NULL),
    ('10', 'missed', 'missed', '2029-12-31 15:00:00+00', NULL, '2029-12-31 15:00:00+00', NULL, '0', 'missed', 'its time passed while the occurrence of 2029-12-31 12:00:00Z was late or running', NULL, NULL, NULL, '0', NULL, '1', NULL),
    ('11', 'cancelled', 'cancelled', '2030-01-01 12:00:00+00', NULL, '2029-12-31 15:00:00+00', NULL, '0', 'skipped', 'cancelled', NULL, NULL, NULL, '0', NULL, '1', NULL),
    ('17', 'scheduled from inside', 'scheduled from inside', '2030-01-01 11:59:00+00', '2030-01-01 11:59:00+00', '2030-01-01 11:59:00+00', 'alive', '1', 'error', NULL, NULL, 'again', NULL, '0', NULL, '1', NULL),
    ('2', 'deleted', 'deleted', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', 'yesterday', '1', 'success', NULL, 'Gone.', NULL, NULL, '0', NULL, '1', NULL),
    ('3', 'failed', 'failed', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', 'yesterday', '1', 'error', NULL, NULL, 'no such tool', NULL, '0', NULL, '1', NULL),
    ('4', 'fired', 'fired', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', 'yesterday', '1', 'success', NULL, 'Done.', NULL, '{"tokens": 12}', '0', NULL, '1', NULL),
    ('5', 'retried', 'retried', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', 'yesterday', '1', 'error', NULL, NULL, 'unreachable', NULL, '0', NULL, '1', NULL),
    ('6', 'silent', 'silent', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', 'yesterday', '1', 'silent', NULL, NULL, NULL, NULL, '0', NULL, '1', NULL),
    ('7', 'missed', 'missed', '2029-12-31 12:00:00+00', '2029-12-31 12:00:00+00', '2029-12-31 15:00:00+00', 'yesterday', '1', 'success', NULL, 'Late.', NULL, NULL, '0', NULL, '1', NULL),
    ('8', 'missed', 'missed', '2029-12-31 13:00:00+00', NULL, '2029-12-31 15:00:00+00', NULL, '0', 'missed', 'its time passed while the occurrence of 2029-12-31 12:00:00Z was late or running', NULL, NULL, NULL, '0', NULL, '1', NULL),
    ('9', 'missed', 'missed', '2029-12-31 14:00:00+00', NULL, '2029-12-31 15:00:00+00', NULL, '0', 'missed', 'its time passed while the occurrence of 2029-12-31 12:00:00Z was late or running', NULL, NULL, NULL, '0', NULL, '1', NULL);
insert into pgrecall.run_reports ("recall_id", "nominal_at", "run_id", "reply", "silent", "error", "usage", "messages", "created_at")
values
    ('handed over', '2030-01-01 11:59:00+00', '14', 'From elsewhere.', 'false', NULL, NULL, NULL, '2030-01-01 11:59:00+00');
insert into pgrecall.session_messages ("session_id", "position", "id", "role", "content", "model_text", "in_history", "in_context", "metadata", "created_at")
overriding system value
values
    ('deleted', '6', 'recall:deleted:2029-12-31T12:00:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Mon 2029-12-31 12:00:00+00:00 (UTC)
Now: Mon 2029-12-31 12:00:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 2, "recall_id": "deleted"}', '2026-11-23 10:22:20.350246+00'),
    ('failed', '4', 'recall:failed:2029-12-31T12:00:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Mon 2029-12-31 12:00:00+00:00 (UTC)
Now: Mon 2029-12-31 12:00:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 3, "recall_id": "failed"}', '2026-11-23 10:22:20.350246+00'),
    ('fired', '1', '01a207ed-94c5-784b-b9a6-cb4537054e43', 'user', 'Hello.', NULL, 'true', 'true', '{}', '2026-11-23 10:22:20.350246+00'),
    ('fired', '2', 'recall:fired:2029-12-31T12:00:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Mon 2029-12-31 12:00:00+00:00 (UTC)
Now: Mon 2029-12-31 12:00:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 4, "recall_id": "fired"}', '2026-11-23 10:22:20.350246+00'),
    ('fired', '7', 'recall:fired:2029-12-31T12:00:00.000000Z:reply', 'assistant', 'Done.', NULL, 'true', 'true', '{"run_id": 4, "recall_id": "fired"}', '2026-11-23 10:22:20.350246+00'),
    ('handed over', '14', 'recall:handed over:2030-01-01T11:59:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Tue 2030-01-01 11:59:00+00:00 (UTC)
Now: Tue 2030-01-01 11:59:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 14, "recall_id": "handed over"}', '2026-11-23 10:22:20.350246+00'),
    ('live', '11', 'recall:live:2030-01-01T11:59:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Tue 2030-01-01 11:59:00+00:00 (UTC)
Now: Tue 2030-01-01 11:59:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 15, "recall_id": "live"}', '2026-11-23 10:22:20.350246+00'),
    ('lost', '10', 'recall:lost:2030-01-01T11:59:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Tue 2030-01-01 11:59:00+00:00 (UTC)
Now: Tue 2030-01-01 11:59:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 12, "recall_id": "lost"}', '2026-11-23 10:22:20.350246+00'),
    ('mid-run', '12', 'recall:mid-run:2030-01-01T11:59:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Tue 2030-01-01 12:59:00+01:00 (Europe/Berlin)
Now: Tue 2030-01-01 12:59:00+01:00 (Europe/Berlin)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: Tue 2030-01-01 13:00:00+01:00 (Europe/Berlin)', 'true', 'true', '{"run_id": 16, "recall_id": "mid-run"}', '2026-11-23 10:22:20.350246+00'),
    ('missed', '8', 'recall:missed:2029-12-31T12:00:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Mon 2029-12-31 12:00:00+00:00 (UTC)
Now: Mon 2029-12-31 12:00:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: Mon 2029-12-31 13:00:00+00:00 (UTC)', 'true', 'true', '{"run_id": 7, "recall_id": "missed"}', '2026-11-23 10:22:20.350246+00'),
    ('missed', '9', 'recall:missed:2029-12-31T16:00:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Mon 2029-12-31 16:00:00+00:00 (UTC)
Now: Tue 2030-01-01 11:59:00+00:00 (UTC)
Late by: 19 h 59 min
Attempt: 1 of 3
Put off before: 0 times
Next time: Tue 2030-01-01 12:00:00+00:00 (UTC)', 'true', 'true', '{"run_id": 13, "recall_id": "missed"}', '2026-11-23 10:22:20.350246+00'),
    ('retried', '5', 'recall:retried:2029-12-31T12:00:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Mon 2029-12-31 12:00:00+00:00 (UTC)
Now: Mon 2029-12-31 12:00:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 2
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 5, "recall_id": "retried"}', '2026-11-23 10:22:20.350246+00'),
    ('scheduled from inside', '15', 'recall:scheduled from inside:2030-01-01T11:59:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Tue 2030-01-01 11:59:00+00:00 (UTC)
Now: Tue 2030-01-01 11:59:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 17, "recall_id": "scheduled from inside"}', '2026-11-23 10:22:20.350246+00'),
    ('silent', '3', 'recall:silent:2029-12-31T12:00:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Mon 2029-12-31 12:00:00+00:00 (UTC)
Now: Mon 2029-12-31 12:00:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 6, "recall_id": "silent"}', '2026-11-23 10:22:20.350246+00'),
    ('told to stop', '13', 'recall:told to stop:2030-01-01T11:59:00.000000Z', 'system', '[Scheduled recall] go on', '[Scheduled recall] go on

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: Tue 2030-01-01 11:59:00+00:00 (UTC)
Now: Tue 2030-01-01 11:59:00+00:00 (UTC)
Late by: 0 s
Attempt: 1 of 3
Put off before: 0 times
Next time: none', 'true', 'true', '{"run_id": 18, "recall_id": "told to stop"}', '2026-11-23 10:22:20.350246+00');
insert into pgrecall.session_recalls ("id", "session_id", "call_type", "trigger_at", "interval_seconds", "internal_comment", "additional_context_message", "status", "created_at", "updated_at", "cron", "time_zone", "end_at", "max_attempts", "timeout_seconds", "idle_for_seconds", "max_defer_seconds", "on_max_defer", "on_interrupt", "pause_after_failures", "deliver_to", "created_by", "created_by_run_id", "chain_depth", "idempotency_key", "metadata", "nominal_at", "attempt", "not_before", "deferrals", "defer_reason", "deferred_since", "failures", "paused_at", "paused_until", "pause_reason", "run_id", "worker_id", "claimed_at", "last_error")
values
    ('cancelled', 'cancelled', 'once', '2030-01-01 12:00:00+00', NULL, NULL, 'go on', 'cancelled', '2026-11-23 10:22:20.350246+00', '2029-12-31 15:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('cron', 'cron', 'recurring', '2030-01-01 13:00:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2026-11-23 10:22:20.350246+00', '0 9 * * 1-5', 'Europe/Berlin', '2030-01-31 12:00:00+00', '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('due', 'due', 'once', '2030-01-01 12:00:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2026-11-23 10:22:20.350246+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('failed', 'failed', 'once', '2029-12-31 12:00:00+00', NULL, NULL, 'go on', 'failed', '2026-11-23 10:22:20.350246+00', '2029-12-31 12:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', 'once', '{"n": 1}', '2029-12-31 12:00:00+00', '1', NULL, '0', NULL, NULL, '1', NULL, NULL, NULL, NULL, NULL, NULL, 'no such tool'),
    ('fired', 'fired', 'once', '2029-12-31 12:00:00+00', NULL, NULL, 'go on', 'fired', '2026-11-23 10:22:20.350246+00', '2029-12-31 12:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', 'once', '{"n": 1}', '2029-12-31 12:00:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('handed over', 'handed over', 'once', '2030-01-01 11:59:00+00', NULL, NULL, 'go on', 'running', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2030-01-01 11:59:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, '14', 'alive', '2030-01-01 11:59:00+00', NULL),
    ('held', 'held', 'once', '2030-01-01 12:00:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2030-01-01 12:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', '2030-01-01 12:01:00+00', '1', 'session held by the chat chat 1', '2030-01-01 12:00:00+00', '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('idle', 'idle', 'once', '2030-01-01 12:00:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2030-01-01 12:00:00+00', NULL, NULL, NULL, '3', NULL, '600', '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', '2030-01-01 12:10:00+00', '1', 'session not quiet for 600 s', '2030-01-01 12:00:00+00', '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('inside', 'scheduled from inside', 'once', '2030-01-01 13:00:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2026-11-23 10:22:20.350246+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('interval', 'interval', 'recurring', '2030-01-01 13:00:00+00', '3600', NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2026-11-23 10:22:20.350246+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', '3', NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('live', 'live', 'once', '2030-01-01 11:59:00+00', NULL, NULL, 'go on', 'running', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2030-01-01 11:59:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, '15', 'alive', '2030-01-01 11:59:00+00', NULL),
    ('lost', 'lost', 'once', '2030-01-01 11:59:00+00', NULL, NULL, 'go on', 'running', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2030-01-01 11:59:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, '12', 'dead', '2030-01-01 11:59:00+00', NULL),
    ('mid-run', 'mid-run', 'recurring', '2030-01-01 11:59:00+00', NULL, NULL, 'go on', 'running', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', '*/10 * * * *', 'Europe/Berlin', NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2030-01-01 11:59:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, '16', 'alive', '2030-01-01 11:59:00+00', NULL),
    ('missed', 'missed', 'recurring', '2029-12-31 16:00:00+00', '3600', NULL, 'go on', 'running', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2029-12-31 16:00:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, '13', 'dead', '2030-01-01 11:59:00+00', NULL),
    ('paused for an hour', 'paused for an hour', 'once', '2030-01-01 12:01:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2030-01-01 12:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', '2030-01-01 12:00:00+00', '2030-01-01 13:00:00+00', NULL, NULL, NULL, NULL, NULL),
    ('paused', 'paused', 'once', '2030-01-01 12:01:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2030-01-01 12:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', '2030-01-01 12:00:00+00', NULL, 'a holiday', NULL, NULL, NULL, NULL),
    ('plain', 'plain', 'immediate', '2030-01-01 13:00:00+00', NULL, 'for people', 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2026-11-23 10:22:20.350246+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'agent', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('retried', 'retried', 'once', '2029-12-31 12:00:00+00', NULL, NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2029-12-31 12:00:00+00', NULL, NULL, NULL, '2', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2029-12-31 12:00:00+00', '1', '2030-01-02 12:00:00+00', '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, 'unreachable'),
    ('scheduled from inside', 'scheduled from inside', 'once', '2030-01-01 11:59:00+00', NULL, NULL, 'go on', 'running', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2030-01-01 11:59:00+00', '1', '2030-01-01 12:59:00+00', '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, 'again'),
    ('silent', 'silent', 'once', '2029-12-31 12:00:00+00', NULL, NULL, 'go on', 'fired', '2026-11-23 10:22:20.350246+00', '2029-12-31 12:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', 'once', '{"n": 1}', '2029-12-31 12:00:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('skipped', 'skipped', 'recurring', '2030-01-02 13:00:00+00', '172800', NULL, 'go on', 'pending', '2026-11-23 10:22:20.350246+00', '2029-12-31 12:00:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', NULL, '0', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('told to stop', 'told to stop', 'once', '2030-01-01 11:59:00+00', NULL, NULL, 'go on', 'cancelled', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', NULL, NULL, NULL, '3', NULL, NULL, '86400', 'run', 'retry', NULL, NULL, 'host', NULL, '0', NULL, '{}', '2030-01-01 11:59:00+00', '1', NULL, '0', NULL, NULL, '0', NULL, NULL, NULL, '18', 'alive', '2030-01-01 11:59:00+00', NULL);
insert into pgrecall.session_waiters ("id", "session_id", "holder", "since", "until", "lease")
overriding system value
values
    ('1', 'held', 'chat 2', '2030-01-01 12:00:00+00', '2030-01-01 12:05:00+00', '00:05:00');
insert into pgrecall.sessions ("id", "user_id", "created_at", "metadata", "time_zone", "max_runs_per_day", "deliver_to", "active_at", "run_id", "holder", "held_since", "held_until", "line_until", "interrupted_by", "wanted_by", "has_waiting")
values
    ('cancelled', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('cron', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('deleted', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, 'http://localhost:9/replies', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('due', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('failed', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, 'http://localhost:9/replies', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('fired', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, 'http://localhost:9/replies', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('handed over', 'bob', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, '14', 'alive', '2030-01-01 11:59:00+00', NULL, NULL, NULL, NULL, 'false'),
    ('held', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, '2030-01-01 12:00:00+00', NULL, 'chat 1', '2030-01-01 12:00:00+00', '2030-01-01 12:05:00+00', '2030-01-01 12:05:00+00', NULL, NULL, 'true'),
    ('idle', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, '2030-01-01 12:00:00+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('interval', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('live', 'bob', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, '15', 'alive', '2030-01-01 11:59:00+00', NULL, NULL, NULL, NULL, 'false'),
    ('lost', 'bob', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, '12', 'dead', '2030-01-01 11:59:00+00', NULL, NULL, NULL, NULL, 'false'),
    ('mid-run', 'bob', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, '16', 'alive', '2030-01-01 11:59:00+00', NULL, NULL, NULL, NULL, 'false'),
    ('missed', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, 'http://localhost:9/replies', NULL, '13', 'dead', '2030-01-01 11:59:00+00', NULL, NULL, NULL, NULL, 'false'),
    ('paused for an hour', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('paused', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('plain', 'cat', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('retried', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, 'http://localhost:9/replies', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('scheduled from inside', 'bob', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('silent', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, 'http://localhost:9/replies', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('skipped', 'ann', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, 'http://localhost:9/replies', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'false'),
    ('told to stop', 'bob', '2026-11-23 10:22:20.350246+00', '{}', NULL, NULL, NULL, NULL, '18', 'alive', '2030-01-01 11:59:00+00', NULL, NULL, NULL, NULL, 'false');
insert into pgrecall.settings ("timeout_seconds", "max_runs_per_day", "silent_token", "message_template", "paused_at", "paused_until", "pause_reason", "agent_min_interval_seconds", "agent_max_pending_per_user", "agent_max_chain_depth", "agent_recurring_days", "agent_can_change_host_recalls")
values
    ('300', '50', '[SILENT]', '[Scheduled recall] {message}

This message comes from a schedule, not from a person. Nobody is connected: do not ask questions, nobody can answer them now. It is not user input, and neither consent to nor approval of anything.
Scheduled for: {scheduled_for}
Now: {now}
Late by: {late_by}
Attempt: {attempt} of {max_attempts}
Put off before: {deferrals} times
Next time: {next}', NULL, NULL, NULL, '60', '100', '7', '30', 'true');
insert into pgrecall.workers ("id", "started_at", "seen_at", "lease_until", "incarnation", "lifelines", "reconnect_grace", "died_at", "concurrency", "host", "pid", "version")
values
    ('alive', '2026-11-23 10:22:20.350246+00', '2030-01-01 12:00:00+00', '2030-01-01 12:04:00+00', NULL, '{NULL,NULL}', '00:00:00.5', NULL, '10', 'a-host', '1', '0.1.0'),
    ('dead', '2026-11-23 10:22:20.350246+00', '2030-01-01 11:59:00+00', '2030-01-01 12:00:01+00', NULL, '{NULL,NULL}', '00:00:00.5', NULL, '3', NULL, NULL, NULL);
select setval('pgrecall.armed_until', 1893585600000000);
select setval('pgrecall.run_ids', 18);
select setval('pgrecall.session_messages_position_seq', 15);
select setval('pgrecall.session_waiters_id_seq', 1);
commit;
