<?php
// Does with PDO what a test asks for, see README.md.
$place = sprintf("pgsql:host=%s;port=%s;dbname=%s", getenv("PGHOST"), getenv("PGPORT"), getenv("PGDATABASE"));
$db = new PDO($place, getenv("PGUSER"), getenv("PGPASSWORD"));

function shown($cell): string {
    if ($cell === null) return "n";
    return "v" . rawurlencode(is_bool($cell) ? ($cell ? "true" : "false") : (string) $cell);
}

function value(string $field) {
    $text = substr($field, 1);
    return match ($field[0]) {
        "n" => null,
        "i" => (int) $text,
        "z" => (new DateTimeImmutable($text))->format("Y-m-d\TH:i:s.uP"),
        default => $text,
    };
}

while (($line = fgets(STDIN)) !== false) {
    $fields = array_map("rawurldecode", explode("\t", rtrim($line, "\n")));
    try {
        switch ($fields[0]) {
            case "begin": $db->beginTransaction(); break;
            case "commit": $db->commit(); break;
            case "rollback": $db->rollBack(); break;
            default:
                $statement = $db->prepare($fields[1]);
                $statement->execute(array_map("value", array_slice($fields, 2)));
                while ($row = $statement->fetch(PDO::FETCH_NUM)) {
                    echo implode("\t", ["row", ...array_map("shown", $row)]), "\n";
                }
                $statement = null; // else PDO deallocates it within the next transaction, before that one's first words
        }
        echo "ok\n";
    } catch (PDOException $error) {
        // PDO has no fields for these: the whole text of libpq, a line each.
        preg_match('/ERROR:  (.*?)(?:\nDETAIL:  (.*?))?(?:\nHINT:  (.*?))?(?:\nCONTEXT:.*)?$/s', $error->errorInfo[2] ?? $error->getMessage(), $told);
        $constraint = preg_match('/constraint "([^"]+)"/', $told[1] ?? "", $named) ? $named[1] : null;
        $parts = [$error->getCode(), $told[1] ?? null, ($told[2] ?? "") ?: null, ($told[3] ?? "") ?: null, $constraint];
        echo implode("\t", ["error", ...array_map("shown", $parts)]), "\n";
    }
    fflush(STDOUT);
}
