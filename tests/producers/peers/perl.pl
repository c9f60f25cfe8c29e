# Does with DBI and DBD::Pg what a test asks for, see README.md.
use strict;
use warnings;
use Encode qw(decode encode);
use DBI;

$| = 1;
my $db = DBI->connect("dbi:Pg:", undef, undef, { RaiseError => 1, PrintError => 0 });

sub decoded { my $field = shift; $field =~ s/%([0-9A-Fa-f]{2})/chr(hex($1))/ge; return decode("UTF-8", $field); }
sub shown {
    my $cell = shift;
    return "n" unless defined $cell;
    $cell = encode("UTF-8", $cell);
    $cell =~ s/([^A-Za-z0-9_.~-])/sprintf("%%%02X", ord($1))/ge;
    return "v$cell";
}
sub say_fields { print join("\t", @_), "\n"; }

while (my $line = <STDIN>) {
    chomp $line;
    my ($what, $statement, @values) = map { decoded($_) } split /\t/, $line, -1;
    eval {
        if    ($what eq "begin")    { $db->begin_work; }
        elsif ($what eq "commit")   { $db->commit; }
        elsif ($what eq "rollback") { $db->rollback; }
        else {
            my $handle = $db->prepare($statement);
            $handle->execute(map { /^n/ ? undef : substr($_, 1) } @values);
            if ($handle->{NUM_OF_FIELDS}) {
                while (my $row = $handle->fetchrow_arrayref) { say_fields("row", map { shown($_) } @$row); }
            }
        }
        1;
    } ? say_fields("ok") : say_fields(
        "error", shown($db->state),
        map { shown($db->pg_error_field($_)) } qw(message_primary message_detail message_hint constraint_name)
    );
}
$db->disconnect;
