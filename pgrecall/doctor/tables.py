"""Checks of the tables themselves: whether vacuum keeps up with what recalls leave behind.

Knows neither workers nor why a recall is late.
"""

from __future__ import annotations

from pgrecall.doctor.finding import Check, Connection, count, every, one, span, who

#: Fewer dead rows than this slow nothing down, whatever part of the table they are.
_FEW = 10_000


def vacuum(connection: Connection) -> Check:
    """Whether dead rows pile up in the tables that every claim reads, and what keeps them there."""
    worst = one(
        connection,
        """
        select stat.relname, stat.n_dead_tup as dead, stat.n_live_tup as live,
            clock_timestamp() - stat.last_autovacuum as since,
            coalesce(
                (select option_value from pg_options_to_table(c.reloptions) where option_name = 'autovacuum_enabled'),
                current_setting('autovacuum')
            )::boolean as is_on,
            coalesce(
                (
                    select option_value
                    from pg_options_to_table(c.reloptions)
                    where option_name = 'autovacuum_vacuum_threshold'
                ),
                current_setting('autovacuum_vacuum_threshold')
            )::bigint + coalesce(
                (
                    select option_value
                    from pg_options_to_table(c.reloptions)
                    where option_name = 'autovacuum_vacuum_scale_factor'
                ),
                current_setting('autovacuum_vacuum_scale_factor')
            )::float * greatest(c.reltuples, 0) as threshold
        from pg_stat_user_tables as stat
        join pg_class as c on c.oid = stat.relid
        where stat.schemaname = 'pgrecall'
            and stat.relname in ('session_recalls', 'sessions', 'workers')
        order by stat.n_dead_tup desc
        limit 1
        """,
    )
    said = f"{worst['dead']} dead rows beside {worst['live']} in {worst['relname']}"
    if worst["since"] is not None:
        said += f", vacuumed {span(worst['since'])} ago"
    if worst["dead"] < max(_FEW, 3 * worst["threshold"]):
        return Check("vacuum", "ok", said)
    claims = "Claims get slower with every dead row. "
    if not worst["is_on"]:
        return Check("vacuum", "warn", f"{said}; autovacuum is off", f"{claims}Switch it on for pgrecall's tables.")
    holders = every(
        connection,
        """
        select pid, application_name, state, clock_timestamp() - xact_start as open_for
        from pg_stat_activity
        where backend_xmin is not null
            and pid <> pg_backend_pid()
            and clock_timestamp() - xact_start > interval '1 minute'
        order by age(backend_xmin) desc
        limit 1
        """,
    )
    slots = every(
        connection,
        "select slot_name from pg_replication_slots where xmin is not null and not active order by age(xmin) desc",
    )
    if holders:
        hint = f"{claims}The snapshot of {who(holders[0])} keeps them: select pg_terminate_backend({holders[0]['pid']})"
    elif slots:
        hint = f"{claims}{count(len(slots), 'unused replication slot')} keeps them, first {slots[0]['slot_name']}."
    else:
        hint = f"{claims}To clear them now: vacuum pgrecall.{worst['relname']}"
    return Check("vacuum", "warn", f"autovacuum is behind: {said}", hint)
