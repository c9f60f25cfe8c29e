#!/bin/sh
# An agent in any language: the run is a JSON object on stdin, the reply is what it prints.
#
#     pgrecall migrate
#     pgrecall schedule chat-1 "Water the plants." --in 5s --create-session
#     pgrecall worker --agent "exec:./command_agent.sh"
#
# Exit code 75 asks for a retry, 69 gives up, any other but 0 is an error; the end of stderr says why.

run=$(cat)

case "$PGRECALL_ATTEMPT" in
    [4-9]*) echo "tried often enough" >&2; exit 69 ;;
esac

message=$(printf '%s' "$run" | sed -n 's/.*"user_message": "\([^"]*\)".*/\1/p')
echo "session $PGRECALL_SESSION_ID: $message"
