// Does with database/sql and lib/pq what a test asks for, see README.md.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
)

type runs interface {
	QueryContext(context.Context, string, ...interface{}) (*sql.Rows, error)
}

func shown(cell interface{}) string {
	switch known := cell.(type) {
	case nil:
		return "n"
	case time.Time:
		return "v" + url.PathEscape(known.UTC().Format(time.RFC3339Nano))
	case []byte:
		return "v" + url.PathEscape(string(known))
	default:
		return "v" + url.PathEscape(fmt.Sprint(known))
	}
}

func text(told string) string {
	if told == "" {
		return "n"
	}
	return shown(told)
}

func value(field string) (interface{}, error) {
	switch field[0] {
	case 'n':
		return nil, nil
	case 'i':
		return strconv.Atoi(field[1:])
	case 'z':
		return time.Parse(time.RFC3339Nano, field[1:])
	default:
		return field[1:], nil
	}
}

func execute(on runs, fields []string) error {
	var values []interface{}
	for _, field := range fields[1:] {
		given, err := value(field)
		if err != nil {
			return err
		}
		values = append(values, given)
	}
	rows, err := on.QueryContext(context.Background(), fields[0], values...)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		cells, places := make([]interface{}, len(columns)), make([]interface{}, len(columns))
		for i := range cells {
			places[i] = &cells[i]
		}
		if err := rows.Scan(places...); err != nil {
			return err
		}
		line := []string{"row"}
		for _, cell := range cells {
			line = append(line, shown(cell))
		}
		fmt.Println(strings.Join(line, "\t"))
	}
	return rows.Err()
}

func main() {
	db, err := sql.Open("postgres", "sslmode=disable")
	if err != nil {
		panic(err)
	}
	defer db.Close()
	var on runs = db
	var transaction *sql.Tx
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		for i := range fields {
			if fields[i], err = url.PathUnescape(fields[i]); err != nil {
				panic(err)
			}
		}
		switch fields[0] {
		case "begin":
			transaction, err = db.Begin()
			on = transaction
		case "commit":
			err, on = transaction.Commit(), db
		case "rollback":
			err, on = transaction.Rollback(), db
		default:
			err = execute(on, fields[1:])
		}
		var told *pq.Error
		switch {
		case err == nil:
			fmt.Println("ok")
		case errors.As(err, &told):
			parts := []string{"error", text(string(told.Code)), text(told.Message), text(told.Detail), text(told.Hint), text(told.Constraint)}
			fmt.Println(strings.Join(parts, "\t"))
		default:
			panic(err)
		}
	}
}
