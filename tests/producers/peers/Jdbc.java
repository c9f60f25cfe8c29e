// Does with pgjdbc what a test asks for, see README.md.
import java.io.*;
import java.net.*;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.time.*;
import java.util.*;
import org.postgresql.util.*;

class Jdbc {
    static final PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);

    static String decoded(String field) {
        return URLDecoder.decode(field.replace("+", "%2B"), StandardCharsets.UTF_8);
    }

    static void say(String what, List<String> values) {
        StringBuilder line = new StringBuilder(what);
        for (String value : values)
            line.append('\t').append(
                value == null ? "n" : "v" + URLEncoder.encode(value, StandardCharsets.UTF_8).replace("+", "%20"));
        out.println(line);
    }

    static Object value(String field) throws SQLException {
        String text = field.substring(1);
        switch (field.charAt(0)) {
            case 'i': return Integer.valueOf(text);
            case 'z': return OffsetDateTime.parse(text);
            case 'j':
                PGobject json = new PGobject();
                json.setType("jsonb");
                json.setValue(text);
                return json;
            case 'n': return null;
            default: return text;
        }
    }

    static void execute(Connection connection, String[] fields) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(decoded(fields[1]))) {
            for (int i = 2; i < fields.length; i++) statement.setObject(i - 1, value(decoded(fields[i])));
            if (!statement.execute()) return;
            ResultSet rows = statement.getResultSet();
            int columns = rows.getMetaData().getColumnCount();
            while (rows.next()) {
                List<String> row = new ArrayList<>();
                for (int i = 1; i <= columns; i++) {
                    boolean isTime = rows.getMetaData().getColumnTypeName(i).equals("timestamptz");
                    Object cell = isTime ? rows.getObject(i, OffsetDateTime.class) : rows.getObject(i);
                    row.add(cell == null ? null : cell.toString());
                }
                say("row", row);
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> env = System.getenv();
        String url = "jdbc:postgresql://" + env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE")
            + "?user=" + env.get("PGUSER") + "&password=" + env.get("PGPASSWORD") + "&preferQueryMode=" + arguments[0];
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (Connection connection = DriverManager.getConnection(url)) {
            for (String line; (line = in.readLine()) != null; ) {
                String[] fields = line.split("\t", -1);
                try {
                    switch (fields[0]) {
                        case "begin": connection.setAutoCommit(false); break;
                        case "commit": connection.commit(); connection.setAutoCommit(true); break;
                        case "rollback": connection.rollback(); connection.setAutoCommit(true); break;
                        default: execute(connection, fields);
                    }
                    say("ok", List.of());
                } catch (PSQLException error) {
                    ServerErrorMessage told = error.getServerErrorMessage();
                    say("error", told == null ? Arrays.asList(error.getSQLState(), error.getMessage(), null, null, null)
                        : Arrays.asList(told.getSQLState(), told.getMessage(), told.getDetail(), told.getHint(),
                            told.getConstraint()));
                }
            }
        }
    }
}
