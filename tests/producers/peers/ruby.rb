# Does with ruby-pg what a test asks for, see README.md.
require "erb"
require "json"
require "pg"
require "time"
require "uri"

$stdout.sync = true
connection = PG.connect
connection.type_map_for_queries = PG::BasicTypeMapForQueries.new(connection)

shown = ->(cell) { cell.nil? ? "n" : "v" + ERB::Util.url_encode(cell) }
value = lambda do |field|
  text = field[1..]
  case field[0]
  when "i" then Integer(text)
  when "z" then Time.iso8601(text)
  when "j" then JSON.parse(text)
  when "t" then text
  end
end

while (line = $stdin.gets)
  what, statement, *values = line.force_encoding("UTF-8").chomp.split("\t", -1).map { URI.decode_uri_component(_1) }
  begin
    answer = what == "execute" ? connection.exec_params(statement, values.map(&value)) : connection.exec(what)
    answer.each_row { |row| puts ["row", *row.map(&shown)].join("\t") }
    puts "ok"
  rescue PG::Error => error
    told = [PG::PG_DIAG_SQLSTATE, PG::PG_DIAG_MESSAGE_PRIMARY, PG::PG_DIAG_MESSAGE_DETAIL, PG::PG_DIAG_MESSAGE_HINT,
            PG::PG_DIAG_CONSTRAINT_NAME].map { error.result.error_field(_1) }
    puts ["error", *told.map(&shown)].join("\t")
  end
end
connection.close
