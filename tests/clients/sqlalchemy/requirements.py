"""What of the suite PostgreSQL can do: nearly everything that is off by default."""

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

OPEN = """
    array_type autocommit autoincrement_without_sequence binary_comparisons binary_literals cast_precision_numerics_many_significant_digits
    check_constraint_reflection comment_reflection comment_reflection_full_unicode computed_columns computed_columns_stored
    computed_columns_reflect_persisted cross_schema_fk_reflection ctes ctes_on_dml ctes_with_update_delete ctes_with_values
    cursor_works_post_rollback datetime_literals datetime_timezone date_coerces_from_datetime date_historic datetime_historic
    delete_from delete_returning delete_returning_from duplicate_names_in_cursor_description dupe_order_by_ok
    emulated_lastrowid fetch_expression fetch_first fetch_no_order_by fetch_null_ordering fetch_ties foreign_keys
    foreign_key_constraint_option_reflection_ondelete foreign_key_constraint_option_reflection_onupdate
    fk_constraint_option_reflection_ondelete_restrict fk_constraint_option_reflection_ondelete_noaction
    fk_constraint_option_reflection_onupdate_restrict get_isolation_level has_temp_table identity_columns identity_columns_standard
    implicitly_named_constraints independent_connections index_ddl_if_exists index_reflection indexes_with_ascdesc indexes_with_expressions
    infinity_floats insert_from_select insert_returning isolation_level json_type json_array_indexes legacy_unconditional_json_extract
    literal_float_coercion materialized_views multivalues_inserts named_constraints nullsordering nvarchar_types offset order_by_col_from_union
    parens_in_union_contained_select_w_limit_offset parens_in_union_contained_select_wo_limit_offset percent_schema_names
    precision_generic_float_type precision_numerics_enotation_large precision_numerics_enotation_small
    precision_numerics_many_significant_digits precision_numerics_retains_significant_digits primary_key_constraint_reflection
    reflect_indexes_with_ascdesc reflect_indexes_with_expressions reflect_tables_no_columns reflects_pk_names regexp_match regexp_replace
    savepoints schema_reflection schema_create_delete schemas self_referential_foreign_keys sequences sequences_optional
    server_side_cursors sql_expression_limit_offset standalone_binds standalone_null_binds_whereclause supports_bitwise_and
    supports_bitwise_or supports_bitwise_not supports_bitwise_xor supports_bitwise_shift supports_distinct_on supports_is_distinct_from
    supports_sequence_for_autoincrement_column table_ddl_if_exists table_value_constructor temp_table_comment_reflection
    temp_table_names temp_table_reflection temp_table_reflect_indexes temporary_tables temporary_views text_type time_microseconds
    time_timezone timestamp_microseconds tuple_in tuple_in_w_empty unbounded_varchar unicode_connections unicode_data unicode_ddl
    unique_constraint_reflection unique_constraints_reflect_as_index update_from update_returning update_where_target_in_subquery
    uuid_data_type view_column_reflection view_reflection views window_functions window_range window_range_numeric
"""


class Requirements(SuiteRequirements):
    def get_order_by_collation(self, config):
        return "C"

    def get_isolation_levels(self, config):
        levels = ["READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"]
        return {"default": "READ COMMITTED", "supported": levels}


for name in OPEN.split():
    if hasattr(SuiteRequirements, name):
        setattr(Requirements, name, property(lambda self: exclusions.open()))
