"""Claude Code as an agent: one of its sessions for each of ours, its result and its costs in the ledger.

export PGRECALL_DSN=postgresql://localhost/app
pgrecall migrate
pgrecall schedule chat-1 "Look through the open pull requests." --in 5s --create-session
pgrecall worker --agent claude_agent:agent
"""

from pgrecall.adapters.subprocess import SubprocessAgent, claude_result

# A session that Claude Code does not know ends --resume with an error and without a word on stdout; --session-id makes
# it then. Nobody can be asked for a permission, so what is not allowed is refused.
SCRIPT = """
text=$(cat)
claude() {
    printf '%s' "$text" | command claude -p --output-format json --max-turns 30 --permission-mode dontAsk "$@"
}
result=$(claude --resume "$PGRECALL_SESSION_UUID")
code=$?
if [ $code -eq 1 ] && [ -z "$result" ]; then
    result=$(claude --session-id "$PGRECALL_SESSION_UUID")
    code=$?
fi
printf '%s' "$result"
exit $code
"""

agent = SubprocessAgent(["sh", "-c", SCRIPT], input="text", output=claude_result)
