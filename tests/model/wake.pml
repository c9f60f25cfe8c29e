/* Sleeping workers, producers that stay silent when they can, and nobody who polls: no wake-up is lost.
 *
 * Row 0 is there at the start, due at 1. One producer inserts row 1, another row 2 (or one inserts both). Two workers
 * look, arm their alarms and sleep. README.md beside this file says what each part stands for, what is left out, and
 * what the mutations (M_...) remove.
 */
#ifndef D1
#define D1 2            /* when the producers' rows are due: 1 to 3; the clock stops at 2 */
#endif
#ifndef D2
#define D2 3
#endif
#ifndef CANCELS
#define CANCELS 0       /* transactions that cancel, postpone or change a row and roll back */
#endif
#ifndef ROLLBACKS
#define ROLLBACKS 0     /* claims whose transaction is rolled back, by a crash of their worker or without */
#endif
#ifndef CUTS
#define CUTS 0          /* lost listener connections */
#endif
#ifndef TMAX
#define TMAX 2
#endif
#ifndef ANYTIME
#define ANYTIME false   /* true: workers may also look when nothing tells them to, as the safety look does */
#endif
#ifndef RR1
#define RR1 false       /* is the first producer's transaction REPEATABLE READ, or READ COMMITTED */
#endif
#ifndef RR2
#define RR2 false
#endif
#define LATER 3         /* not_before of a deferred recall, and the next time of a recurring one */
#define NEVER 7
#define NONE 7
#define SILENT 8        /* a claim that tells the others nothing; NEVER is: sleep as long as you like */

#define ABSENT 0
#define ELIGIBLE 1      /* due_at is set */
#define TAKEN 2         /* claimed, ended or cancelled: due_at is null */
#define LOST 3          /* claimed by a dead worker whose lease has ended */

byte st[3], due[3];                   /* the committed version of each row */
byte nst[3], ndue[3];                 /* the version of the transaction that has it locked */
byte lock[3];                         /* who: 0 nobody, 1 + w a worker, 3 + p a producer, 7 the session's run, 8 others */
byte tick;
byte shared;                          /* the wake-up lock */
byte exclusive, queued;               /* 1 + w; how many wait for it */
byte reg = NEVER;                     /* armed_until */
bool taken;                           /* row 0's session is taken by a run */

byte alarm[2];
byte box[2];                          /* the earliest time in the notifications that this worker has not read yet */
#ifdef HERD
bool moved[2];                        /* there is a "next" among them, which moves the alarm, */
byte onwards[2] = NEVER;              /* and this is the earliest time from the last of them on, itself included */
bool stale[2];                        /* it comes of a claim that began before this worker's latest look ended */
bool aged[2];                         /* this worker's claim began before the other one's latest look ended */
byte sticky[2] = NEVER;               /* the same as alarm and box, for announcements that no "next" takes back */
byte stickybox[2] = NEVER;
#endif
bool asleep[2], listens[2], deaf[2];  /* deaf: between the loss of the listener and the look after the LISTEN */
byte cancels = CANCELS, rollbacks = ROLLBACKS, cuts = CUTS;
#ifdef M_TOLD_BEYOND
byte told = NONE;
#endif

#define RR(p)       ((p) == 1 && RR1 || (p) == 2 && RR2)
#define LEAST(a, b) ((a) < (b) -> (a) : (b))
#ifdef HERD
#ifdef M_STALE_NEXT
#define OBEYS(w)    moved[w]
#else
#define OBEYS(w)    (moved[w] && !(stale[w] && asleep[w]))
#endif
#define WAKES(w)    LEAST((OBEYS(w) -> onwards[w] : LEAST(alarm[w], box[w])), LEAST(sticky[w], stickybox[w]))
#define LOOK_NOW(w) sticky[w] = 0
#define RINGS(w)    (alarm[w] <= tick || sticky[w] <= tick)
#define UNREAD(w)   (box[w] != NEVER || moved[w] || stickybox[w] != NEVER)
#else
#define WAKES(w)    LEAST(alarm[w], box[w])
#define LOOK_NOW(w) alarm[w] = 0
#define RINGS(w)    (alarm[w] <= tick)
#define UNREAD(w)   (box[w] != NEVER)
#endif
#define LATE(w, x)  (st[x] == ELIGIBLE && WAKES(w) > due[x])
#define BAD(w)      (asleep[w] && !deaf[w] && (LATE(w, 0) || LATE(w, 1) || LATE(w, 2)))
#define UNCOVERED(w) (asleep[w] && !deaf[w] && WAKES(w) > reg)

/* the earliest time that a transaction sees: all committed rows, its own in its own version */
inline earliest(me, m) {
  m = NEVER;
  for (i : 0 .. 2) {
    if
#ifdef M_PEEK_SKIPS_LOCKED
    :: me < 3 && lock[i] != 0 && lock[i] != me -> skip
#endif
    :: lock[i] == me && nst[i] == ELIGIBLE && ndue[i] < m -> m = ndue[i]
    :: lock[i] != me && st[i] == ELIGIBLE && due[i] < m -> m = due[i]
    :: else
    fi
  }; i = 0
}

/* does a transaction see a row that is earlier than its own row x */
inline sees_earlier(me, x, yes) {
  yes = false;
  for (i : 0 .. 2) {
    if
#ifdef M_NO_LATER
    :: i != x && lock[i] == me && nst[i] == ELIGIBLE && ndue[i] <= ndue[x] -> yes = true
    :: i != x && lock[i] != me && st[i] == ELIGIBLE && due[i] <= ndue[x] -> yes = true
#else
    :: lock[i] == me && nst[i] == ELIGIBLE && ndue[i] < ndue[x] -> yes = true
    :: lock[i] != me && st[i] == ELIGIBLE && due[i] < ndue[x] -> yes = true
#endif
    :: else
    fi
  }; i = 0
}

/* the trigger, for row x of a transaction that commits */
inline decide(me, x, rr) {
  refused = false;
#ifndef M_NO_PRODUCER_LOCK
  if :: held || exclusive == me || (exclusive == 0 && queued == 0) ->
          if :: !held && exclusive != me -> shared++; held = true :: else fi
     :: else -> refused = true
  fi;
#endif
#ifndef M_SNAPSHOT_FIRST
  sees_earlier(me, x, yes); seen = reg;
#endif
  if
#ifdef M_TOLD_IS_ENOUGH
  :: told != NONE -> skip
#else
  :: told <= ndue[x] && told != NONE -> skip
#endif
#ifdef M_SILENT_WHEN_REFUSED
  :: refused -> skip
#endif
  :: !(told <= ndue[x] && told != NONE) && !refused && ndue[x] >= seen -> skip
#ifdef M_RR_PROBES
  :: !(told <= ndue[x] && told != NONE) && !refused && ndue[x] < seen && (!rr && yes || rr && old < ndue[x]) -> skip
#else
  :: !(told <= ndue[x] && told != NONE) && !refused && ndue[x] < seen && !rr && yes -> skip
#endif
  :: else -> told = (told == NONE -> ndue[x] : 0);
#if defined(HERD) && !defined(M_NOT_STICKY)
     if :: refused || told == 0 -> sticks = LEAST(sticks, told) :: else -> says = LEAST(says, told) fi
#else
     says = LEAST(says, told)
#endif
  fi;
#ifdef M_PRODUCER_LOWERS
  if :: ndue[x] < reg -> reg = ndue[x] :: else fi;
#endif
  refused = false; yes = false; seen = 0
}

/* the transaction becomes visible; its notification is in the queue of everybody who listens */
inline visible(me) {
  for (i : 0 .. 2) { if :: lock[i] == me -> st[i] = nst[i]; due[i] = ndue[i]; lock[i] = 0; nst[i] = 0; ndue[i] = 0 :: else fi };
  i = 0;
#ifdef HERD
  /* what a claim says to the others comes before what its triggers say at its end */
  if :: next != SILENT && listens[me == 1] ->
          moved[me == 1] = true; onwards[me == 1] = next; stale[me == 1] = aged[me == 2]
     :: else fi;
  next = SILENT;
  if :: sticks != NONE ->
          if :: listens[0] -> stickybox[0] = LEAST(stickybox[0], sticks) :: else fi;
          if :: listens[1] -> stickybox[1] = LEAST(stickybox[1], sticks) :: else fi
     :: else fi;
  sticks = NONE;
#endif
  if :: says != NONE ->
          if :: listens[0] -> box[0] = LEAST(box[0], says) :: else fi;
          if :: listens[1] -> box[1] = LEAST(box[1], says) :: else fi;
#ifdef HERD
          if :: moved[0] -> onwards[0] = LEAST(onwards[0], says) :: else fi;
          if :: moved[1] -> onwards[1] = LEAST(onwards[1], says) :: else fi
#endif
     :: else fi;
  says = NONE
#ifndef M_TOLD_BEYOND
  ; told = NONE
#endif
}

inline undone(me) {
  for (i : 0 .. 2) { if :: lock[i] == me -> lock[i] = 0; nst[i] = 0; ndue[i] = 0 :: else fi };
  i = 0; says = NONE
#ifdef HERD
  ; next = SILENT; sticks = NONE
#endif
#ifndef M_TOLD_BEYOND
  ; told = NONE
#endif
}

#ifdef HERD
#define HERDING byte sticks = NONE, next = SILENT;
#else
#define HERDING
#endif

proctype producer(byte first, last) {
  HERDING
  byte i, old, seen, says = NONE;
  bool rr, held, refused, yes;
#ifndef M_TOLD_BEYOND
  byte told = NONE;
#endif
  if :: !RR(first) -> skip
     :: RR(first) -> d_step { rr = true; earliest(9, old) }      /* the snapshot is as old as this */
  fi;
  d_step {
    lock[first] = 2 + first; nst[first] = ELIGIBLE; ndue[first] = (first == 1 -> D1 : D2);
    if :: last != first -> lock[last] = 2 + first; nst[last] = ELIGIBLE; ndue[last] = D2 :: else fi
  };
#ifdef M_SNAPSHOT_FIRST
  d_step { sees_earlier(2 + first, first, yes); seen = reg };
#endif
  /* COMMIT begins: the deferred triggers */
  d_step { decide(2 + first, first, rr) };
  if :: last != first -> d_step { decide(2 + first, last, rr) } :: else fi;
#ifdef M_EARLY_RELEASE
  d_step { if :: held -> shared--; held = false :: else fi };
#endif
  if :: d_step { undone(2 + first) }
     :: d_step { visible(2 + first) }
  fi;
  d_step { if :: held -> shared--; held = false :: else fi; rr = false; old = 0 }
}

#ifdef DEFERRAL
/* the run that has row 0's session ends: finish() makes the deferred recall due again by an UPDATE */
proctype finisher() {
  HERDING
  byte i, old, seen, says = NONE, told = NONE;
  bool held, refused, yes;
  d_step { lock[0] == 0 -> lock[0] = 7; nst[0] = st[0]; ndue[0] = due[0];
    if :: st[0] == ELIGIBLE && due[0] == LATER -> ndue[0] = 1 :: else fi };
#ifndef M_SILENT_UPDATE
  d_step { if :: ndue[0] < due[0] -> decide(7, 0, false) :: else fi };
#endif
  d_step { taken = false; visible(7) };
  d_step { if :: held -> shared--; held = false :: else fi }
}
#endif

/* somebody cancels or postpones a row, or has it locked and rolls back; all in silence */
proctype canceller() {
  byte x;
end:
  do
  :: cancels > 0 ->
end_nothing:
       if :: d_step { st[0] == ELIGIBLE && lock[0] == 0 -> x = 0; lock[0] = 8; cancels-- }
          :: d_step { st[1] == ELIGIBLE && lock[1] == 0 -> x = 1; lock[1] = 8; cancels-- }
          :: d_step { st[2] == ELIGIBLE && lock[2] == 0 -> x = 2; lock[2] = 8; cancels-- }
       fi;
       if :: d_step { st[x] = TAKEN; lock[x] = 0; x = 0 }
          :: d_step { due[x] = LATER; lock[x] = 0; x = 0 }
          :: d_step { lock[x] = 0; x = 0 }
       fi
  od
}

proctype worker(byte w) {
  HERDING
  byte i, m, old, seen, says = NONE;
  bool settled, looked, made, held, refused, yes;
#ifndef M_TOLD_BEYOND
  byte told = NONE;
#endif
again: skip;
  /* ------ forget the alarm, look: claim() takes what is due and free, defers what waits for its session */
  d_step {
    asleep[w] = false; m = 0; alarm[w] = NEVER;
#ifdef HERD
    sticky[w] = NEVER; aged[w] = false;
#endif
    deaf[w] = deaf[w] && !listens[w];
    for (i : 0 .. 2) {
      if
      :: lock[i] == 0 && st[i] == ELIGIBLE && due[i] <= tick ->
           lock[i] = 1 + w; looked = true; nst[i] = TAKEN;
           if :: i == 0 && taken -> nst[i] = ELIGIBLE; ndue[i] = LATER; made = true :: else fi
      :: lock[i] == 0 && st[i] == LOST ->                /* _expire_leases(): a recurring recall's next time */
           lock[i] = 1 + w; nst[i] = ELIGIBLE; ndue[i] = LATER - 1; made = true
      :: else
      fi
    }; i = 0
  };
#ifdef M_PEEK_FIRST
  d_step { earliest(1 + w, m) };
#endif
  /* ------ the wake-up lock: at once, or in line for a moment if there was nothing to take */
#ifndef M_NO_WORKER_LOCK
  if
  :: d_step { shared == 0 && exclusive == 0 -> exclusive = 1 + w; settled = true }
  :: d_step { !(shared == 0 && exclusive == 0) -> settled = false }
#ifdef QUEUES
  :: d_step { !(shared == 0 && exclusive == 0) && !looked -> queued++ };
     if :: d_step { shared == 0 && exclusive == 0 -> exclusive = 1 + w; settled = true; queued-- }
        :: d_step { queued--; settled = false }
     fi
#endif
  fi;
#else
  settled = true;
#endif
  /* ------ the earliest time, in a new statement; the register */
  d_step {
#ifndef M_PEEK_FIRST
    earliest(1 + w, m);
#endif
#ifdef HERD
    stale[w] = moved[w]; aged[1 - w] = true;
    /* what was due is dealt with, so the other one need not look before m */
#ifndef M_NEXT_UNLOCKED
    if :: settled && m > tick -> next = m :: else fi;
#else
    if :: m > tick -> next = m :: else fi;
#endif
#endif
#ifdef M_SLEEP_UNSETTLED
    if :: !settled -> held = false :: else fi;
#endif
    if :: settled ->
#ifndef M_REGISTER_LATE
#ifdef M_LOWER_TO_UNCOMMITTED
            reg = m
#else
            if :: m > reg || !made -> reg = m :: else fi
#endif
#else
            skip
#endif
       :: else fi
  };
#if defined(HERD) && defined(AT_WILL)
  if :: next != SILENT -> next = SILENT :: skip fi;
#endif
#ifdef M_NEXT_RELEASES
  d_step { if :: exclusive == 1 + w -> exclusive = 0 :: else fi };
#endif
  /* ------ the claim's own triggers, then visible, then the locks go; or all of it is rolled back */
#ifdef GIVES_BACK
  d_step { if :: lock[0] == 1 + w && st[0] == LOST -> decide(1 + w, 0, false) :: else fi };
#endif
  if
  :: d_step { visible(1 + w) };
     d_step { if :: exclusive == 1 + w -> exclusive = 0 :: else fi; if :: held -> shared--; held = false :: else fi;
       looked = false; made = false }
  :: d_step { rollbacks > 0 -> rollbacks--; undone(1 + w); settled = false;
       if :: exclusive == 1 + w -> exclusive = 0 :: else fi; if :: held -> shared--; held = false :: else fi;
       looked = false; made = false }
  fi;
#ifdef M_LISTEN_LATE
  d_step { if :: !listens[w] -> listens[w] = true; deaf[w] = false :: else fi };
#endif
  /* ------ arm, unless the look was unsettled or found something due */
  d_step {
#ifdef M_REGISTER_LATE
    reg = m;
#endif
#ifdef M_SLEEP_UNSETTLED
    if :: m > tick ->
#else
    if :: settled && m > tick ->
#endif
#ifdef M_OVERWRITE
            alarm[w] = m;
#else
            alarm[w] = LEAST(alarm[w], m);
#endif
            asleep[w] = true
       :: else fi;
    m = 0; settled = false
  };
  if :: asleep[w] -> skip :: else -> goto again fi;
  /* ------ sleep: until the alarm, or the safety look at any time, or a crash (a new worker LISTENs, and looks) */
end:
  RINGS(w) || ANYTIME -> goto again
}

/* the listener reads its notifications at any time, also while the worker looks; its connection may be lost */
proctype listener(byte w) {
end:
  do
  :: d_step { UNREAD(w) ->
#ifdef HERD
       if :: OBEYS(w) -> alarm[w] = onwards[w] :: else -> alarm[w] = LEAST(alarm[w], box[w]) fi;
       moved[w] = false; stale[w] = false; onwards[w] = NEVER;
       sticky[w] = LEAST(sticky[w], stickybox[w]); stickybox[w] = NEVER;
#else
       alarm[w] = LEAST(alarm[w], box[w]);
#endif
       box[w] = NEVER }
  :: d_step { cuts > 0 && listens[w] -> cuts--; listens[w] = false; box[w] = NEVER; deaf[w] = true
#ifdef HERD
       ; moved[w] = false; stale[w] = false; onwards[w] = NEVER; stickybox[w] = NEVER
#endif
     };
#ifdef M_LISTEN_LATE
     d_step { asleep[w] = false; LOOK_NOW(w) };          /* looks first; see the worker */
     listens[w]
#else
     listens[w] = true;                                  /* LISTEN has been committed */
     LOOK_NOW(w)                                         /* look now; deaf until that look has begun */
#endif
  od
}

proctype clock() { end: do :: tick < TMAX -> tick++ od }

/* S: nobody sleeps past a due row. R: nobody sleeps past the register. */
proctype monitor() { end: d_step { BAD(0) || BAD(1) -> assert(!BAD(0) && !BAD(1)) } }
proctype monitor2() { end: d_step { UNCOVERED(0) || UNCOVERED(1) -> assert(!UNCOVERED(0) && !UNCOVERED(1)) } }

init {
  d_step {
    alarm[0] = NEVER; alarm[1] = NEVER; box[0] = NEVER; box[1] = NEVER; listens[0] = true; listens[1] = true;
    due[0] = 1;
#ifdef GIVES_BACK
    st[0] = LOST;
#else
    st[0] = ELIGIBLE;
#endif
#ifdef DEFERRAL
    taken = true;
#endif
  };
  atomic {
    run worker(0); run worker(1); run listener(0); run listener(1); run clock(); run monitor();
#ifdef REGISTER
    run monitor2();
#endif
    if :: cancels > 0 -> run canceller() :: else fi;
#ifdef DEFERRAL
    run finisher();
#endif
#if defined(TWO_ROWS)
    run producer(1, 2)
#elif !defined(NO_ROW)
    run producer(1, 1);
#ifndef ONE_ROW
    run producer(2, 2)
#endif
#endif
  }
}
