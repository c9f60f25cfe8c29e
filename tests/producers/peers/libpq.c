/* Does with libpq what a test asks for, see README.md. */
#include <libpq-fe.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 1 << 20, FIELDS = 64 };

static void decode(char *field) {
    char *to = field;
    for (char *from = field; *from; from++)
        if (*from == '%') {
            char digits[3] = {from[1], from[2], 0};
            *to++ = (char) strtol(digits, NULL, 16);
            from += 2;
        } else
            *to++ = *from;
    *to = 0;
}

static void show(const char *cell) {
    fputs(cell ? "\tv" : "\tn", stdout);
    for (; cell && *cell; cell++)
        if (isalnum((unsigned char) *cell))
            putchar(*cell);
        else
            printf("%%%02X", (unsigned char) *cell);
}

int main(void) {
    static char line[LINE];
    PGconn *connection = PQconnectdb("");
    if (PQstatus(connection) != CONNECTION_OK) {
        fputs(PQerrorMessage(connection), stderr);
        return 1;
    }
    while (fgets(line, LINE, stdin)) {
        char *fields[FIELDS], *rest = line;
        const char *values[FIELDS];
        int count = 0;
        line[strcspn(line, "\n")] = 0;
        for (char *field; count < FIELDS && (field = strsep(&rest, "\t")); count++) decode(fields[count] = field);
        for (int i = 2; i < count; i++) values[i] = *fields[i] == 'n' ? NULL : fields[i] + 1;
        PGresult *answer = strcmp(fields[0], "execute")
            ? PQexec(connection, fields[0])
            : PQexecParams(connection, fields[1], count - 2, NULL, values + 2, NULL, NULL, 0);
        ExecStatusType status = PQresultStatus(answer);
        if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK) {
            for (int row = 0; row < PQntuples(answer); row++) {
                fputs("row", stdout);
                for (int column = 0; column < PQnfields(answer); column++)
                    show(PQgetisnull(answer, row, column) ? NULL : PQgetvalue(answer, row, column));
                putchar('\n');
            }
            fputs("ok", stdout);
        } else {
            const int parts[] = {PG_DIAG_SQLSTATE, PG_DIAG_MESSAGE_PRIMARY, PG_DIAG_MESSAGE_DETAIL,
                                 PG_DIAG_MESSAGE_HINT, PG_DIAG_CONSTRAINT_NAME};
            fputs("error", stdout);
            for (int i = 0; i < 5; i++) show(PQresultErrorField(answer, parts[i]));
        }
        putchar('\n');
        fflush(stdout);
        PQclear(answer);
    }
    PQfinish(connection);
    return 0;
}
