/* Who may run a session when workers, connections, networks and the server fail: leases, fencing, lifelines, rescue.
 *
 * One session with NREC due recalls, NW workers with one slot each. README.md beside this file says what each part
 * stands for, what is left out, and what the mutations (M_...) remove.
 *
 * Time passes in ticks, by countdowns. What must happen in time holds the clock until it has happened (BUSY);
 * everything else may take as long as it likes or happen never.
 */
#ifndef NW
#define NW 2
#endif
#ifndef NREC
#define NREC 1
#endif
#ifndef MAXATT
#define MAXATT 2        /* max_attempts */
#endif
#ifndef LIFE
#define LIFE 1          /* 0: no lifelines (behind a pooler), the lease alone */
#endif

/* How many faults of each kind; which worker they meet, when and in which order is free. */
#ifndef DEATHS
#define DEATHS 0        /* kill -9 of a worker, never of the last one */
#endif
#ifndef CUTS
#define CUTS 0          /* a connection of a living worker ends: a line, the watch, or the one that brings an answer */
#endif
#ifndef RESTARTS
#define RESTARTS 0      /* the server crashes and comes back */
#endif
#ifndef PARTITIONS
#define PARTITIONS 0    /* a worker is cut off in silence; the server goes on thinking that it is there */
#endif

/* Faults meet the last worker only; the others, its rivals, are quick, and their leases are not counted. */
#ifdef ANYWORKER
#define VICTIM(w)   true
#define WATCHES(w)  true
#else
#define VICTIM(w)   (w == NW - 1)
#define WATCHES(w)  (w < NW - 1)
#endif

/* Lengths, in ticks. */
#ifndef LEASE
#define LEASE 8
#endif
#define CLAIMED 5       /* what is left of the lease after a claim, at least: 0.66 */
#ifndef SEEN
#define SEEN 4          /* "seen lately": longer than a renewal interval (1) and the grace together */
#endif
#ifdef M_NO_GRACE
#define GRACE 0
#else
#define GRACE 2         /* reconnect_grace */
#endif
#ifdef M_LATE_STOP
#define STOP 2
#else
#define STOP 1          /* a worker in doubt stops its runs after so long: 0.6 of the grace */
#endif
#ifdef M_NO_MARGIN
#define MARGIN 0
#else
#define MARGIN 1        /* a worker gives up so long before its lease ends */
#endif
#ifdef M_EARLY_DROP
#define DROP NEVER
#else
#define DROP GRACE      /* the server drops a silent client's connection when it has not been seen for SEEN - DROP */
#endif
#define NEVER 15

#define DUE 0
#define RUN 1
#define FIRED 2
#define FAILED 3

/* ---------------------------------------------------------------- the database */
bool up = true;
byte life = 1;                        /* incarnation of the server */
byte st[NREC], own[NREC], tok[NREC], att[NREC];
byte ses;                             /* sessions.run_id; 0: free */
byte tokens;                          /* run_ids: the fencing tokens */
byte over;                            /* recall_runs: bit t: run t was lost or given back */
byte ended[NREC], started[NREC], closed[NREC];
bool hasl[NW];                        /* workers.lease_until is set */
byte lease[NW];                       /* and has so long to go */
byte seen[NW];                        /* workers.seen_at: for so long it is lately */
byte rowlife[NW];                     /* workers.incarnation; 0: null */
bool n1[NW], n2[NW];                  /* workers.lifelines names the lock that this connection holds */
bool c1[NW], c2[NW];                  /* the server holds these connections to be there, and with them the locks */
bool rowlock[NW];                     /* a rescuer has locked the worker's row */

/* ---------------------------------------------------------------- the workers */
bool alive[NW], part[NW], stale[NW];
bool k1[NW], k2[NW];                  /* the worker believes in these connections */
bool doubt[NW];                       /* it has lost both lines and has not told the database that it does without */
byte wd[NW];                          /* in doubt: so long until it must stop its runs */
bool excused[NW];                     /* in doubt, but knows that the server is down */
bool giving[NW];                      /* is about to tell the database that it does without lines */
bool reask[NW];                       /* has line 1 again and must ask which runs it still has */
byte ans[NW];                         /* the answer to a claim is on its way: recall + 1 */
bool late[NW];                        /* it has been in doubt since it asked for that */
byte job[NW], rt[NW];                 /* recall + 1, and the token */
bool live[NW];                        /* the agent is executing */
bool good[NW];                        /* the agent ended by itself; else it was stopped */
byte mine[NW];                        /* so long the lease lasts for certain, less the margin */
bool asleep[NW];
byte alarm[NW];

/* ---------------------------------------------------------------- the watches: `call watch()`, server-side */
#define OFF 0
#define WAIT 1                        /* for a line of the next worker of the ring */
#define SLEEP 2                       /* the grace */
#define HOLD 3                        /* has a suspect's row locked and has found it dead */
#define IDLE 4                        /* nobody has a lease: returns */
byte ws[NW], wg[NW], sus[NW], tgt[NW];
bool want[NW];                        /* Watch._wanted: a reason to watch that no call has answered yet */
bool lined[NW];                       /* it died while it had a line */
byte deadfor[NW];                     /* so long the claim of such a one has waited */

byte deaths = DEATHS, cuts = CUTS, restarts = RESTARTS, partitions = PARTITIONS;

#define REACH(w)    (alive[w] && up && !part[w])
#define ISDUE(r)    (st[r] == DUE)
#if NREC > 1
#define ANYDUE      (ISDUE(0) || ISDUE(1))
#define HASCLAIM(w) ((st[0] == RUN && own[0] == w) || (st[1] == RUN && own[1] == w))
#else
#define ANYDUE      ISDUE(0)
#define HASCLAIM(w) (st[0] == RUN && own[0] == w)
#endif
#ifdef M_NO_SESSION_HOLD
#define FREE        true
#else
#define FREE        (ses == 0)
#endif
#define OURS(w)     (st[job[w] - 1] == RUN && own[job[w] - 1] == w && tok[job[w] - 1] == rt[w])

#ifdef M_NO_LINE_STOP
#define STOP_FOR_LINES(w) false
#else
#define STOP_FOR_LINES(w) (doubt[w] && wd[w] == 0 && !excused[w])
#endif
#ifdef M_NO_LEASE_STOP
#define STOP_FOR_LEASE(w) false
#else
#define STOP_FOR_LEASE(w) (mine[w] == 0)
#endif
#define MUSTSTOP(w) (alive[w] && live[w] && (STOP_FOR_LINES(w) || STOP_FOR_LEASE(w)))
#define LEARN1(w)   (alive[w] && !part[w] && k1[w] && !c1[w])
#define LEARN2(w)   (alive[w] && !part[w] && k2[w] && !c2[w] && !stale[w])
#ifdef M_CLAIM_IN_DOUBT
#define MAYCLAIM(w) (REACH(w) && job[w] == 0 && ans[w] == 0 && !rowlock[w])
#else
#define MAYCLAIM(w) (REACH(w) && job[w] == 0 && ans[w] == 0 && !rowlock[w] && !doubt[w])
#endif
#define LOOKS(w)    (MAYCLAIM(w) && (!asleep[w] || alarm[w] == 0))
#define RENEWS(w)   (REACH(w) && job[w] != 0 && !rowlock[w] && (k1[w] && c1[w] || !LIFE))

#define H1(v)       (n1[v] && c1[v])
#define H2(v)       (n2[v] && c2[v])
#ifdef M_ONE_LINE
#define HELD(v)     H1(v)
#else
#define HELD(v)     (H1(v) || H2(v))
#endif
#ifdef M_NO_INCARNATION
#define MEMBER(v)   (rowlife[v] != 0)
#else
#define MEMBER(v)   (rowlife[v] == life)
#endif
#define SUSPECT(v)  (MEMBER(v) && !HELD(v))
#define RUNG(w)     (ws[w] == WAIT && (!HELD(tgt[w]) || !MEMBER(tgt[w])))

/* Nothing can happen any more once all have ended and everybody has heard it. */
#if NREC > 1
#define OPEN        (st[0] < FIRED || st[1] < FIRED)
#else
#define OPEN        (st[0] < FIRED)
#endif
#if NW > 2
#define GOING       (OPEN || job[0] || job[1] || job[2])
#else
#define GOING       (OPEN || job[0] || job[1])
#endif

#if NW > 2
#define LIVES       (alive[0] + alive[1] + alive[2])
#define LIVERUNS    (live[0] + live[1] + live[2])
#define LEASES      (hasl[0] || hasl[1] || hasl[2])
#define ALL(p)      (p(0) || p(1) || p(2))
#define LOOKER(v)   (MAYCLAIM(0) && v != 0 || MAYCLAIM(1) && v != 1 || MAYCLAIM(2) && v != 2)
#else
#define LIVES       (alive[0] + alive[1])
#define LIVERUNS    (live[0] + live[1])
#define LEASES      (hasl[0] || hasl[1])
#define ALL(p)      (p(0) || p(1))
#define LOOKER(v)   (MAYCLAIM(0) && v != 0 || MAYCLAIM(1) && v != 1)
#endif

/* What the clock waits for. PUNCTUAL: also for what is only meant to be quick. */
#ifdef PUNCTUAL
#define QUICK(w)    (RENEWS(w) && seen[w] < SEEN || RUNG(w) || ws[w] == SLEEP && wg[w] == 0 || ws[w] == HOLD || \
                     ws[w] == IDLE || ws[w] == OFF && want[w] && REACH(w) || ans[w] && REACH(w) || giving[w] || \
                     REACH(w) && (!k1[w] || !k2[w]) && !rowlock[w])
#else
#define QUICK(w)    false
#endif
#define BUSY(w)     (LEARN1(w) || LEARN2(w) || MUSTSTOP(w) || LOOKS(w) || reask[w] && RENEWS(w) || LIFE && QUICK(w))

/* ---------------------------------------------------------------- steps of the database */
inline everybody_wakes() {            /* something became due: wake.pml shows that all sleepers hear of it */
  for (v : 0 .. NW - 1) { asleep[v] = false; alarm[v] = 0 }
}

inline close_run(r) {                 /* recorded as lost or given back; due again while attempts are left */
  over = over | (1 << tok[r]); closed[r]++;
  if :: ses == tok[r] -> ses = 0 :: else fi;
  own[r] = 0; tok[r] = 0;
  if :: att[r] >= MAXATT -> st[r] = FAILED; ended[r]++; assert(ended[r] == 1) :: else -> st[r] = DUE fi;
  everybody_wakes()
}

inline give_back_all(w) {
  for (q : 0 .. NREC - 1) { if :: st[q] == RUN && own[q] == w -> close_run(q) :: else fi };
  q = 0; v = 0; hasl[w] = false; lease[w] = 0; seen[w] = 0
}

inline find_next(w) {                 /* the next worker of the ring */
  tgt[w] = NEVER;
  for (v : 1 .. NW - 1) { q = (w + v) % NW; if :: tgt[w] == NEVER && MEMBER(q) -> tgt[w] = q :: else fi };
  q = 0; v = 0
}

inline turn(w) {                      /* one turn of watch(): whom to wait for, or whom to suspect */
  find_next(w);
  if :: tgt[w] == NEVER -> ws[w] = OFF; tgt[w] = 0                           /* alone */
     :: tgt[w] != NEVER && HELD(tgt[w]) -> ws[w] = WAIT
     :: else ->                                                              /* free */
          for (v : 0 .. NW - 1) { if :: v != w && SUSPECT(v) -> sus[w] = sus[w] | (1 << v) :: else fi };
          v = 0; tgt[w] = 0; wg[w] = GRACE; ws[w] = SLEEP
  fi
}

inline join(w) {                      /* into this life of the server: the worker before it in the ring is told */
  rowlife[w] = life;
#ifndef M_NO_REEVALUATION
  for (v : 1 .. NW - 1) {
    q = (w + NW - v) % NW;
    if :: MEMBER(q) -> if :: alive[q] && c2[q] && !part[q] -> want[q] = true; if :: ws[q] == WAIT -> ws[q] = OFF; tgt[q] = 0 :: else fi :: else fi;
          break
       :: else fi };
  q = 0; v = 0
#endif
}

inline lease_begins() {               /* NOTIFY watch; who does not listen right now misses it */
#ifndef M_NO_WATCH_MESSAGE
  for (v : 0 .. NW - 1) { if :: alive[v] && c2[v] && !part[v] -> want[v] = true :: else fi }; v = 0
#else
  skip
#endif
}

inline lost_both(w) {
  if :: !k1[w] && !k2[w] -> doubt[w] = true; wd[w] = STOP; excused[w] = false; if :: ans[w] -> late[w] = true :: else fi
     :: else fi
}

inline has_line(w) {
  doubt[w] = false; wd[w] = 0; excused[w] = false;
#if !defined(M_SAME_WORKER) && !defined(M_NO_RECHECK)
  for (v : 0 .. NW - 1) { sus[v] = sus[v] & ~(1 << w) }; v = 0         /* no longer the locks that were found free */
#endif
}

inline slot_is_free(w) {
  job[w] = 0; rt[w] = 0; live[w] = false; good[w] = false; mine[w] = 0; reask[w] = false; asleep[w] = false; alarm[w] = 0
}

inline start(w) {
  live[w] = true; started[job[w] - 1]++;
  assert(started[job[w] - 1] <= closed[job[w] - 1] + 1);      /* every start but the first has its row in the ledger */
  assert(LIVERUNS <= 1)                                       /* never two live runs of one session */
}

proctype worker(byte w) provided (GOING) {
  byte q, u, v;
end:
  do
  /* ------ claim(): give back what leases have ended of, take one, look ahead */
  :: d_step { LOOKS(w) ->
       for (u : 0 .. NW - 1) { if :: hasl[u] && lease[u] == 0 && !rowlock[u] -> give_back_all(u) :: else fi };
       for (q : 0 .. NREC - 1) { if :: ISDUE(q) && FREE -> break :: else fi };
       if
       :: q < NREC ->
            tokens++; st[q] = RUN; own[q] = w; tok[q] = tokens; att[q]++; ses = tokens;
            if :: lease[w] <= CLAIMED -> lease[w] = LEASE :: else fi;
            if :: !hasl[w] -> hasl[w] = true; lease_begins() :: else fi;
            seen[w] = SEEN; mine[w] = CLAIMED - MARGIN; rt[w] = tokens; asleep[w] = false; alarm[w] = 0;
            if :: VICTIM(w) -> ans[w] = q + 1 :: else -> job[w] = q + 1; start(w) fi
       :: else ->
            asleep[w] = true; alarm[w] = NEVER;
#ifndef M_LEASE_NOT_NEXT
            for (v : 0 .. NW - 1) { if :: v != w && hasl[v] && lease[v] < alarm[w] -> alarm[w] = lease[v] :: else fi }
#endif
       fi; q = 0; u = 0; v = 0 }
  /* ------ its answer arrives, or never does */
  :: d_step { ans[w] && REACH(w) ->
       job[w] = ans[w]; ans[w] = 0;
       if
#if defined(M_START_IN_DOUBT)
       :: mine[w] > 0 ->
#elif defined(M_START_AFTER_DOUBT)
       :: mine[w] > 0 && !STOP_FOR_LINES(w) ->
#else
       :: mine[w] > 0 && !late[w] ->
#endif
            start(w)
       :: else -> mine[w] = 0
       fi;
       late[w] = false }
  :: d_step { VICTIM(w) && ans[w] && alive[w] && cuts > 0 -> cuts--; ans[w] = 0; late[w] = false; rt[w] = 0; mine[w] = 0 }
  /* ------ renew() */
  :: d_step { RENEWS(w) && (seen[w] < SEEN || reask[w]) ->
       if :: hasl[w] -> lease[w] = LEASE; seen[w] = SEEN; if :: live[w] -> mine[w] = LEASE - MARGIN :: else fi :: else fi;
       reask[w] = false;
       if :: live[w] && !OURS(w) -> live[w] = false; mine[w] = 0 :: else fi }
  /* ------ the agent ends, or is stopped */
  :: d_step { alive[w] && live[w] -> live[w] = false; good[w] = true; mine[w] = 0 }
  :: d_step { MUSTSTOP(w) -> live[w] = false; mine[w] = 0 }
  /* ------ finish(), as late as it likes */
  :: d_step { REACH(w) && job[w] && !live[w] ->
       q = job[w] - 1;
#ifdef M_NO_FENCING
       if :: st[q] == RUN ->
#else
       if :: OURS(w) ->
#endif
            assert(!(over & (1 << rt[w])));                             /* a lost run's outcome is never accepted */
            if :: good[w] -> if :: ses == tok[q] -> ses = 0 :: else fi;
                    own[q] = 0; tok[q] = 0; st[q] = FIRED; ended[q]++; assert(ended[q] == 1); everybody_wakes()
               :: else -> close_run(q)
            fi
       :: else
       fi;
       slot_is_free(w); q = 0; v = 0 }
#if LIFE
  /* ------ lines: lost, taken again (with a lock of its own for each connection), given up */
  :: d_step { LEARN1(w) -> k1[w] = false; lost_both(w) }
  :: d_step { LEARN2(w) -> k2[w] = false; lost_both(w) }
  :: d_step { REACH(w) && !k1[w] && !rowlock[w] ->
       c1[w] = true; k1[w] = true; n1[w] = true; has_line(w);
#ifndef M_NO_REASK
       if :: job[w] -> reask[w] = true :: else fi;
#endif
       if :: rowlife[w] != life -> n2[w] = false; join(w) :: else fi }
  :: d_step { REACH(w) && !k2[w] && !rowlock[w] ->
       c2[w] = true; k2[w] = true; n2[w] = true; has_line(w); want[w] = true; asleep[w] = false; alarm[w] = 0;
       if :: rowlife[w] != life -> n1[w] = false; join(w) :: else fi }
  :: d_step { alive[w] && doubt[w] && !giving[w] && ans[w] == 0 -> giving[w] = true }
  :: d_step { REACH(w) && giving[w] && !rowlock[w] -> giving[w] = false;
#if defined(M_GIVE_UP_UNLESS_HELD)
       if :: !HELD(w) -> rowlife[w] = 0; n1[w] = false; n2[w] = false :: else fi; has_line(w)
#elif defined(M_BLIND_GIVE_UP)
       rowlife[w] = 0; n1[w] = false; n2[w] = false; doubt[w] = false; wd[w] = 0; excused[w] = false
#else
       if :: !k1[w] && !k2[w] -> rowlife[w] = 0; n1[w] = false; n2[w] = false; has_line(w)
          :: else fi
#endif
       }
  :: d_step { alive[w] && !part[w] && doubt[w] && !up && !excused[w] && wd[w] > 0 -> excused[w] = true }
#ifdef M_REFUSAL_IS_NO_PROOF
  :: d_step { REACH(w) && doubt[w] && !excused[w] && wd[w] > 0 -> excused[w] = true }
#endif
  /* ------ the server finds out that a connection is no more that its client has left */
  :: d_step { alive[w] && !part[w] && c1[w] && !k1[w] -> c1[w] = false }
  :: d_step { alive[w] && !part[w] && c2[w] && !k2[w] -> c2[w] = false }
  /* ------ faults of connections */
  :: d_step { VICTIM(w) && REACH(w) && cuts > 0 && c1[w] -> cuts--; c1[w] = false }
  :: d_step { VICTIM(w) && REACH(w) && cuts > 0 && c2[w] -> cuts--; c2[w] = false }
#ifdef M_HALF_OPEN
  :: d_step { VICTIM(w) && REACH(w) && cuts > 0 && c2[w] && k2[w] -> cuts--; c2[w] = false; stale[w] = true }
  :: d_step { stale[w] -> stale[w] = false }
#endif
#endif
  /* ------ a partition: the worker gives up on connections, the server drops them, it heals */
  :: d_step { VICTIM(w) && alive[w] && !part[w] && partitions > 0 && !LEARN1(w) && !LEARN2(w) -> partitions--; part[w] = true }
  :: d_step { part[w] -> part[w] = false; asleep[w] = false; alarm[w] = 0 }
#if LIFE
  :: d_step { part[w] && k1[w] -> k1[w] = false; lost_both(w) }
  :: d_step { part[w] && k2[w] -> k2[w] = false; lost_both(w) }
  :: d_step { part[w] && c1[w] && seen[w] <= DROP -> c1[w] = false }
  :: d_step { part[w] && c2[w] && seen[w] <= DROP -> c2[w] = false }
#endif
  /* ------ kill -9 */
  :: d_step { VICTIM(w) && alive[w] && deaths > 0 && LIVES > 1 -> deaths--;
#ifdef PUNCTUAL
       lined[w] = (k1[w] && c1[w] || k2[w] && c2[w]);
#endif
       alive[w] = false; c1[w] = false; c2[w] = false; k1[w] = false; k2[w] = false; part[w] = false; stale[w] = false;
       doubt[w] = false; wd[w] = 0; excused[w] = false; giving[w] = false; ans[w] = 0; late[w] = false; want[w] = false;
       slot_is_free(w) }
  od
}

#if LIFE
proctype watch(byte w) provided (GOING) {
  byte q, u, v;
end:
  do
  :: d_step { ws[w] == OFF && want[w] && REACH(w) -> want[w] = false; turn(w) }
  :: d_step { RUNG(w) -> turn(w) }
#ifndef M_NO_REEVALUATION
#ifndef PUNCTUAL
  :: d_step { ws[w] == WAIT -> turn(w) }                              /* every few seconds */
#endif
#endif
  /* ------ the grace is over: a suspect's row is locked and its lines are tested again */
  :: d_step { ws[w] == SLEEP && wg[w] == 0 ->
       for (v : 0 .. NW - 1) { if :: sus[w] & (1 << v) -> break :: else fi };
       if
       :: v == NW ->
#ifdef M_NO_SECOND_TURN
            ws[w] = WAIT; find_next(w); if :: tgt[w] == NEVER || !HELD(tgt[w]) -> ws[w] = OFF; tgt[w] = 0 :: else fi
#else
            turn(w)
#endif
       :: else ->
            sus[w] = sus[w] & ~(1 << v);
#ifdef M_NO_RECHECK
            if :: !rowlock[v] && MEMBER(v) ->
#else
            if :: !rowlock[v] && SUSPECT(v) ->
#endif
#ifndef M_RECHECK_UNLOCKED
                    rowlock[v] = true;
#endif
                    tgt[w] = v; ws[w] = HOLD
               :: else fi
       fi; v = 0 }
  :: d_step { ws[w] == HOLD ->
       u = tgt[w]; tgt[w] = 0; ws[w] = SLEEP; rowlock[u] = false;
#ifndef M_RESCUE_UNSEEN
       if :: HASCLAIM(u) && hasl[u] && lease[u] > 0 && seen[u] == 0 -> skip      /* not for sure dead: its lease decides */
          :: else ->
#endif
               give_back_all(u);
#ifndef M_RESCUE_UNSEEN
       fi;
#endif
       rowlife[u] = 0; n1[u] = false; n2[u] = false; u = 0 }
#ifdef LINGER
  /* ------ nobody has had a lease for long: it ends */
  :: d_step { ws[w] == WAIT && !LEASES -> ws[w] = IDLE; tgt[w] = 0 }
  :: d_step { ws[w] == IDLE -> ws[w] = OFF;
#ifdef M_WATCH_FORGETS
       want[w] = false
#endif
       }
#endif
  /* ------ its connection ends; a dead worker's goes on for a while, or not */
  :: d_step { ws[w] != OFF && (!alive[w] || VICTIM(w) && cuts > 0) ->
       if :: alive[w] -> cuts--; want[w] = true :: else fi;
       if :: ws[w] == HOLD -> rowlock[tgt[w]] = false :: else fi;
       ws[w] = OFF; wg[w] = 0; sus[w] = 0; tgt[w] = 0 }
  od
}
#endif

proctype world() provided (GOING) {
  byte v;
end:
  do
  /* ------ a tick */
  :: d_step { !ALL(BUSY) ->
       for (v : 0 .. NW - 1) {
         /* a dead worker's claim is not left alone after its lease while another worker could look */
         assert(!(!alive[v] && HASCLAIM(v) && lease[v] == 0 && LOOKER(v)));
#if defined(PUNCTUAL) && LIFE
         /* and does not wait for the lease at all */
         if :: lined[v] && HASCLAIM(v) -> deadfor[v]++; assert(deadfor[v] <= 2 * GRACE + 1) :: else -> deadfor[v] = 0 fi;
#endif
         if :: VICTIM(v) || !alive[v] ->
                 if :: lease[v] > 0 -> lease[v]-- :: else fi;
                 if :: seen[v] > 0 -> seen[v]-- :: else fi;
                 if :: mine[v] > 0 -> mine[v]-- :: else fi
            :: else fi;
         if :: wd[v] > 0 -> wd[v]-- :: else fi;
         if :: alarm[v] > 0 && alarm[v] < NEVER -> alarm[v]-- :: else fi;
         if :: wg[v] > 0 -> wg[v]-- :: else fi
       }; v = 0 }
  /* ------ the server crashes, and comes back in another life */
  :: d_step { up && restarts > 0 -> restarts--; up = false;
       for (v : 0 .. NW - 1) {
         c1[v] = false; c2[v] = false; rowlock[v] = false; stale[v] = false;
         if :: ans[v] -> ans[v] = 0; late[v] = false; rt[v] = 0; mine[v] = 0 :: else fi;
         if :: ws[v] != OFF -> ws[v] = OFF; wg[v] = 0; sus[v] = 0; tgt[v] = 0; want[v] = alive[v] :: else fi
       }; v = 0 }
  :: d_step { !up -> up = true; life++;
       for (v : 0 .. NW - 1) { asleep[v] = false; alarm[v] = 0 }; v = 0 }
  od
}

init {
  byte v;
  d_step {
    for (v : 0 .. NW - 1) {
      alive[v] = true;
#if LIFE
#ifdef JOINS
      if :: v == 1 -> doubt[v] = true :: else ->         /* worker 1 has not taken its lines yet */
#endif
      c1[v] = true; c2[v] = true; k1[v] = true; k2[v] = true; n1[v] = true; n2[v] = true; rowlife[v] = 1; want[v] = true;
#ifdef JOINS
      fi;
#endif
#endif
    }; v = 0
  };
  atomic {
    run world();
    for (v : 0 .. NW - 1) {
      run worker(v);
#if LIFE
      if :: WATCHES(v) -> run watch(v) :: else fi
#endif
    }; v = 0
  }
}
